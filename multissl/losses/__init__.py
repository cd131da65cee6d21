"""Losses as pure functions on tensors: usable in any training loop, with statistics over all ranks."""
