"""Requests to answers: one model, its batches, caches and populations of differences."""
