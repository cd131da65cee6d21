"""Runs in the formats of other programs: one file for each target, and what they share."""
