"""The commands on runs and their checkpoints."""
