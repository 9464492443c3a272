"""Tests of merging/hull."""
