"""Reproduction of privacy- and accuracy-aware model deduplication, arXiv:2503.02862."""
