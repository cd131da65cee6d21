"""The trainer and what it stands on. Sees the protocols of `types`, never a modality or an objective by name."""
