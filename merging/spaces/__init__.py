"""Genome to plan, one space a file; `space.py` is the interface.

What a strategy has to know of a space is its domain, by the names of the strategy's own arguments
(`axes` and `corners`, `starts`, `founders`); a strategy that needs what a space does not give is
refused by name.
"""
