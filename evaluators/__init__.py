"""Requests out, scores in: what to ask a model, the engine that asks, and what answers are worth."""
