"""A start and seeded noise, step by step: what evolution strategies in all parameters walk.

The paper's noise has one size for every tensor (`noise=published`); the default is relative to the
experts' task vectors in each tensor, and rows, blocks and singular directions move along what the
experts have learnt.
"""
