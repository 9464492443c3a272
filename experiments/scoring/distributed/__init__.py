"""Scoring by Ray's workers, on many devices and nodes."""
