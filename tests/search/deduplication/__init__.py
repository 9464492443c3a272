"""Tests of search/deduplication."""
