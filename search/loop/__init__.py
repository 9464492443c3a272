"""Ask, evaluate, write down, tell.

`history.jsonl` is the only truth. A second start builds a freshly seeded strategy and tells it
what the history holds, checking that it asks for the recorded genomes: a killed run continues
here, with optimizers that cannot be pickled, too. Times are kept apart in `timing.jsonl`, so that
equal runs have equal bytes in all other files.
"""
