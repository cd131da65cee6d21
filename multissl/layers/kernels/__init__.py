"""Ways to compute attention over packed groups of rows: one kernel per file, registered by name."""
