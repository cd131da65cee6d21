"""Optimizers: one per file, around torch's; which parameter gets which rate is settled in `treatment`."""
