"""What a terminal shows: log lines, bars."""
