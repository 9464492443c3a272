"""Tests of merging/stacks."""
