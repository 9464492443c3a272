"""Requests out, scores in: what to ask a model, the engine that asks, what answers are worth."""
