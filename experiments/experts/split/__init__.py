"""Experts from data that never leaves its owner: noised states of tokens and labels leave it.

Noise belongs to an example, not to a moment: whoever asks again is given the same.
"""
