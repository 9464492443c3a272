"""How much each element of a model matters, one way a file; public data alone is read."""
