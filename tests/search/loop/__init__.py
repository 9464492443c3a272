"""Tests of search/loop."""
