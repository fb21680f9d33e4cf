"""From options to an open run."""
