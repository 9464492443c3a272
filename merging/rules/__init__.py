"""The arithmetic that merge methods share, block by block in torch or as compiled loops."""
