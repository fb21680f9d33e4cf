"""The data of a run: from a raw table to batches."""
