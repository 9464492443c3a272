"""Reproduced papers: one folder each, with the RESULTS.md that its command wrote."""
