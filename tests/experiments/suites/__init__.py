"""Tests of experiments/suites."""
