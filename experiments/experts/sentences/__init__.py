"""Experts for sentence classification: one pretrained encoder, fine-tuned once for each task."""
