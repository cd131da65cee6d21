"""Recipes: functions that return a `Recipe`, one module a modality."""
