"""Tests of merging/zoo."""
