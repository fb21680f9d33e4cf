"""What makes the loops of others resumable; each module imports its library, and no other does."""
