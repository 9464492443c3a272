"""Reproduction of Split-and-Privatize, arXiv:2312.15603: privacy against accuracy, and a merge."""
