"""Every model type of the installed transformers, tiny: merged, reloaded, asked.

A row is never a matter of belief: what is expected is computed here, by transformers and plain
arithmetic, and each comparison is also made with a wrong model, which has to be told apart.
"""
