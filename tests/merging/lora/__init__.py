"""Tests of merging/lora."""
