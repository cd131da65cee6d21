"""Evaluators of what an encoder says of the parts of a picture."""
