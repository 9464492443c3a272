"""Layers of any model in any order, at any depth."""
