"""Tests of merging/lineages."""
