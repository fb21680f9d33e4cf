"""What every message is made of: language, shell quoting, hidden secrets."""
