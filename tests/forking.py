"""Processes that tests start and kill: forked by one server from what has imported all they need.

A start takes a tenth of a second. One list for all, as a later one would replace it.
"""

import multiprocessing

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "evaluators.tasks.perplexity",
        "experiments.commands.hydra_verbs",
        "experiments.commands.split",
        "experiments.searches.run",
        "hydra.main",
        "merging.methods.ties",
        "merging.spaces.coefficients",
        "merging.spaces.convex",
        "search.strategies.nevergrad_optimizer",
        "tests.experiments.commands.disturbed",
        "tests.merging.zoo.writer",
        "transformers.models.bert.modeling_bert",
        "transformers.models.llama.modeling_llama",
    ]
)
