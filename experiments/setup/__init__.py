"""Configuration to objects of a search, and everything that can be refused before it."""
