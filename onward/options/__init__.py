"""Options: declared once, merged into one flat namespace, told as commands."""
