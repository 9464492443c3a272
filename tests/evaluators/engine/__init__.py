"""Tests of evaluators/engine."""
