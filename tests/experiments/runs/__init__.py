"""Tests of experiments/runs."""
