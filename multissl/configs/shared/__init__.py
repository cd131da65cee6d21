"""What recipes of several modules share; no recipe itself."""
