"""Encoders: from views to features. No loss."""
