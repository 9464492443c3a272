"""Tests of merging/spaces."""
