"""Deduplication put together: saliency, questions, answers by accuracy, and what is stored."""
