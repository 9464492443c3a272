"""Weights in, weights out: checkpoints, task vectors, merge methods, spaces and recipes."""
