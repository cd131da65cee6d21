"""Samples of several streams that belong together."""
