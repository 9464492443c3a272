"""Tests of evaluators/harness."""
