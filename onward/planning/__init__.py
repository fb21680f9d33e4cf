"""How often a cluster should save: what failures and checkpoints cost. Numbers only."""
