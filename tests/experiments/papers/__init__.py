"""Tests of experiments/papers."""
