"""Models stored once: bytes and tensors, that know no checkpoint, no plan and no recipe.

`codec.py` turns one block of a tensor's raw bytes into stored bytes and back, maybe as difference
to a block of a relative.
"""
