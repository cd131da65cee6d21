"""Benchmarks: one script a question; figures in RESULTS.md."""
