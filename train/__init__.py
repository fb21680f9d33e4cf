"""Train on one machine, lose it, go on from the run ID on another."""
