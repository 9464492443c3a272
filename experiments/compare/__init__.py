"""Comparison of runs: groups that differ in more than the seed, tests between them, one page."""
