"""Measurements of ourselves beside a limit or a peer, from one run each."""
