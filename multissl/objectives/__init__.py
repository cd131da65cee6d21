"""Objectives: from encoders and views to losses. No modality by name."""
