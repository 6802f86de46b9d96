"""Benchmarks: figures and ratios, never tests. `make bench`."""
