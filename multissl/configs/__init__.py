"""Recipes: functions that return a `Recipe`, one module per part of the command line's names."""
