"""The networks that the registry in ``fge.models`` builds."""
