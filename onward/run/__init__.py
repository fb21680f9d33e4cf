"""A run, open for training."""
