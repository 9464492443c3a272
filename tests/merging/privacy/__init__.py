"""Tests of merging/privacy."""
