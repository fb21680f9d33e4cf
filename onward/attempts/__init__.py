"""Who works on a run: attempts, their heartbeat, their lease."""
