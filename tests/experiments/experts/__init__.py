"""Tests of experiments/experts."""
