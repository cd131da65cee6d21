"""Small programs that keep the source in order."""
