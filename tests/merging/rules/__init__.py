"""Tests of merging/rules."""
