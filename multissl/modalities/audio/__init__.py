"""Sounds as log-mel spectrograms."""
