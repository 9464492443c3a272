"""Tests of search/winners."""
