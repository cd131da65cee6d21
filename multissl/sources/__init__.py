"""Where samples lie, and how their bytes are reached."""
