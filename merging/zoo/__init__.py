"""Models stored once: bytes and tensors, that know no checkpoint, no plan and no recipe.

`store.py` is the zoo: models by name. A model's files are cut into blocks (`layout.py`), each
stored once, by the hash of its raw bytes: by `codec.py`, maybe as difference to a block of a
relative, which is never a difference itself. Packs are never changed once the index names them,
and the index changes in one step, so that no kill and no full disk loses what was committed. In a
view stand pointers where the weights would lie: what reads safetensors files by `WeightFiles`
reads through them, and their identities are those of the files. `differences.py` turns one
model in memory into another, by the bytes in which they differ.
"""
