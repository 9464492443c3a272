"""Tests of experiments/searches."""
