"""Kept for models that were logged by earlier versions."""
