"""Loggers: where the metrics of a run go, one to a file."""
