"""Tests of experiments/reports."""
