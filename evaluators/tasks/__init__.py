"""Evaluators of perplexity, multiple choice and classification on files of items."""
