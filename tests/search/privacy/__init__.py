"""Tests of search/privacy."""
