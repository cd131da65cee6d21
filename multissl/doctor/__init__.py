"""What data is worth before anything is trained on it: `multissl data PATH`."""
