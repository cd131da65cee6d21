"""Where samples lie: one file per format or place, registered by name, and how the bytes of a sample are reached."""
