"""Tests of experiments/pseudonyms."""
