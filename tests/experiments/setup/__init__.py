"""Tests of experiments/setup."""
