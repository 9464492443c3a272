"""Tests of experiments/gathering."""
