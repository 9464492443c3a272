"""Tests of experiments/scoring."""
