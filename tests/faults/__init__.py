"""Faults put into runs on purpose: writes that fail, kills, damaged files, mutated inputs."""
