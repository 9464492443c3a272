"""Writes models and adapters."""
