"""Fitness on private items: noise, thresholds and a budget counted before each generation."""
