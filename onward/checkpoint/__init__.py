"""Checkpoints: their bytes, the store they are committed to, what is kept."""
