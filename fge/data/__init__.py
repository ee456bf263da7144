"""Images in memory, and batches of them."""
