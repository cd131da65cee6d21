"""Evaluators that train classifiers on frozen features."""
