"""Tests of experiments/commands."""
