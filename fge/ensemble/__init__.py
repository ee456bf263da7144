"""What is kept of a training and averaged: snapshots, predictions, FGE, fold."""
