"""Clearly worse candidates are asked fewer items."""
