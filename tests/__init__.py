"""Mirrors the packages.

Merge methods are compared with independent float64 versions, checkpoints with transformers and
peft, lm-eval tasks with lm-eval itself; strategies, methods and evaluators pass contract tests;
the search command is killed and continued as a process. What takes over a minute is marked `slow`.
"""
