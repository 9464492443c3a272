"""Trackers beside W&B, each a thin file over a library that only its own extra brings.

A run that is killed and continued stays one run there: what has reached the library's storage is
read back from it, and only what is missing is written.
"""
