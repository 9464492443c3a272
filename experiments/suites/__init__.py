"""Benchmark suites: many searches on equal terms; and experiments with steps of their own."""
