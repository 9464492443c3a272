"""Tests of merging/saving."""
