"""Tests of experiments/contests."""
