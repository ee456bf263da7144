"""A network and its weights: architectures, state, flat vector, batch norm, averages."""
