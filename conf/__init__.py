"""Hydra configuration of evomerge; a package so that it is found from an installed wheel."""
