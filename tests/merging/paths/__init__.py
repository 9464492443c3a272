"""Tests of merging/paths."""
