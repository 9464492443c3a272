"""Tests of merging/methods."""
