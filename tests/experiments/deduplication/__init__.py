"""Tests of experiments/deduplication."""
