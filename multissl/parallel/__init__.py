"""The only room that knows there may be several ranks."""
