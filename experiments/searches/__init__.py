"""One search from its start to its report: steps, references, certificate, trackers.

A killed run is taken up in `run.py`: its directory is found by its configuration, and the loop
tells a fresh strategy what the history holds.
"""
