"""Tests of the memorization evaluators."""
