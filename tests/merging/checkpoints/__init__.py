"""Tests of merging/checkpoints."""
