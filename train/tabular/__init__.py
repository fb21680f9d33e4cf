"""Regression on a table: the task that is shipped, one among others."""
