"""Benchmarks that need the lab: each figure is a ratio within one run of one guest."""
