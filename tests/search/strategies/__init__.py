"""Tests of search/strategies."""
