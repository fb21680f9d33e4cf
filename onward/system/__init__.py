"""This machine and process: environment, files, threads, what others wrote."""
