"""Requests out, scores in: `evaluator.py` is the interface, `panel.py` several on one split."""
