"""Tests of search/racing."""
