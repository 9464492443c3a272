"""The command line; heavy imports wait until a verb needs them, so that help answers at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

_VERBS = {
    "search": ("experiments.commands.hydra_verbs", "search"),
    "check": ("experiments.commands.hydra_verbs", "check"),
    "merge": ("experiments.commands.hydra_verbs", "merge"),
    "evaluate": ("experiments.commands.hydra_verbs", "evaluate"),
    "statistics": ("experiments.commands.hydra_verbs", "statistics"),
    "rebuild": ("experiments.commands.plain_verbs", "rebuild"),
    "report": ("experiments.commands.plain_verbs", "report"),
    "pseudonymize": ("experiments.commands.plain_verbs", "pseudonymize"),
    "reference-losses": ("experiments.commands.plain_verbs", "reference_losses"),
    "compare": ("experiments.commands.compare", "compare"),
}

HELP = """\
evomerge: evolve one multi-task model from a base and its fine-tuned experts, without gradients

  evomerge search experiment=quickstart       evolve a merge; run it again to continue or to see it
  evomerge search -m strategy=cma,random seed=0,1    sweep; what is finished is not run twice
  evomerge check experiment=quickstart        everything that can be known before the work starts
  evomerge merge method=ties experts=local experts.base=DIR 'experts.experts={a:DIR,b:DIR}' out=DIR
  evomerge merge mergekit=FILE.yaml out=DIR   run a mergekit file as it is
  evomerge evaluate model=DIR evaluator@report_on=...  score one model
  evomerge statistics kind=gram out=DIR ...   what method=regmean reads; kind=fisher: method=fisher
  evomerge rebuild RUN/recipe.json --out DIR  the same weights again, from the recipe
  evomerge report RUN                         write RUN/report.html again
  evomerge pseudonymize IN.jsonl OUT.jsonl --fields FILE --key-env NAME    keyed slugs for values
  evomerge reference-losses BASE TEXTS.jsonl OUT.json    calibrates evaluator membership
  evomerge compare RUN RUN ... --out DIR      mean and sd over seeds, paired tests, plots

search, check, merge, evaluate and statistics are Hydra applications: NAME=VALUE replaces an
option, GROUP=NAME a part, `evomerge search --cfg job` prints the whole configuration, `evomerge
VERB --help` more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit status: 0 well, 1 failed, 2 wrong input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"evomerge {version('evomerge')}")
        return 0
    verb, *rest = arguments
    if verb not in _VERBS:
        print(f"evomerge: unknown verb {verb!r}: expected {', '.join(_VERBS)}", file=sys.stderr)
        return 2
    module, function = _VERBS[verb]
    try:
        return int(getattr(importlib.import_module(module), function)(rest))
    except KeyboardInterrupt:
        print(f"evomerge {verb}: interrupted; the same command continues it", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
