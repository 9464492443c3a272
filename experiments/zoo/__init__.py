"""A zoo in use: its models added, listed, shown, opened, checked; what they need; its plot.

What a search keeps in one is in `searches/keeping.py`, `zoo best` in `commands/zoo_best.py`,
`zoo dedup` in `deduplication/`; how recipes are rebuilt in `merging/zoo_recipes.py`.
"""
