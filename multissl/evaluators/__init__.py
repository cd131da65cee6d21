"""Evaluators: from encoders and clean views to figures."""
