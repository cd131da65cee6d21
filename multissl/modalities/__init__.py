"""Modality adapters: from data sources to views. No parameters, no objective by name."""
