"""Tests of search/populations."""
