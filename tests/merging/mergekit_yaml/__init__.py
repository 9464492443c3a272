"""Tests of merging/mergekit_yaml."""
