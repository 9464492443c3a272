"""Tests of merging/deduplication."""
