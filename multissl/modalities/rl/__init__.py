"""Frames, states and actions of environments."""
