"""Tests of evaluators/tasks."""
