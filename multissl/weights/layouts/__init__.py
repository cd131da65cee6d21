"""Namings of weights: a file each, around one class."""
