"""The arithmetic that merge methods share.

A method's rule is written once in torch and runs block by block on any device (`blocks.py`). Rules
that can be compiled (`compiled_rule.py`) run on a CPU, for models with a parameter of 2^17 entries
or more, in loops that numba compiles (`loops.py`, `kernels.py`): everything passes through memory
once, with the same bits. A new method needs no loop; whatever it adds up outside its rule stands
under `threads.one_thread`. `cache.py` keeps what does not depend on the genome: magnitudes in
order, ranks, noise.

Candidates of dense experts are made one by one: N at once would be N models in memory, and one is
one pass over the experts' bytes. Mixtures of LoRA experts are one matrix product a generation.
"""
