"""The networks that the registry in ``fge.networks.build`` builds."""
