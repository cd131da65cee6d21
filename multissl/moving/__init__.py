"""Configurations of other projects, read as recipes of ours."""
