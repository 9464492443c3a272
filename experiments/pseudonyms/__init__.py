"""Keyed slugs in place of identifiers."""
