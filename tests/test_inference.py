"""From data to features."""
