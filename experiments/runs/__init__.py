"""A run's directory and files, and the errors, options and devices that all commands share.

A run's identity is the hash of its resolved configuration, without what changes no candidate's
result (`directory.py`); a directory with another one is refused. A run leaves `config.yaml`,
`environment.json`, `ingredients.json` (digests of models and items), `references.jsonl` (base,
experts, static merges), `history.jsonl`, `cases.jsonl` (candidates' per-item scores),
`search_cases.jsonl`, `selection_cases.jsonl`, `report_cases.jsonl` (those of references and
winner), `timing.jsonl`, `rescored.jsonl` (with `common_items`), `finalists.jsonl`, `in_hull/`,
`certificate.json`, `recipe.json`, `adapter/` where asked for, `model/` (classifiers also under
`model/heads/NAME`), `summary.json`, `wandb/`, and `report.html`: written last, it marks the run as
finished.
"""
