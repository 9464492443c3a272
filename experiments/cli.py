"""The command line; heavy imports wait until a verb needs them, so that help answers at once."""

import importlib
import sys
from collections.abc import Sequence

from experiments.commands import completion
from experiments.commands.pipe import quiet_pipe
from experiments.runs.spelling import did_you_mean

# Verb to module, function and, of a Hydra application, its configuration.
_VERBS = {
    "search": ("experiments.commands.hydra_verbs", "search", "search"),
    "check": ("experiments.commands.hydra_verbs", "check", "search"),
    "merge": ("experiments.commands.hydra_verbs", "merge", "merge"),
    "evaluate": ("experiments.commands.hydra_verbs", "evaluate", "evaluate"),
    "statistics": ("experiments.commands.hydra_verbs", "statistics", "statistics"),
    "split vendor": ("experiments.commands.hydra_verbs", "split_vendor", "split"),
    "split customer": ("experiments.commands.hydra_verbs", "split_customer", "split"),
    "rebuild": ("experiments.commands.plain_verbs", "rebuild", None),
    "report": ("experiments.commands.plain_verbs", "report", None),
    "verify": ("experiments.commands.verify", "verify", None),
    "push": ("experiments.commands.push", "push", None),
    "runs": ("experiments.commands.runs", "runs", None),
    "pseudonymize": ("experiments.commands.plain_verbs", "pseudonymize", None),
    "reference-losses": ("experiments.commands.plain_verbs", "reference_losses", None),
    "compare": ("experiments.commands.compare", "compare", None),
    "zoo": ("experiments.commands.zoo", "zoo", None),
    "zoo dedup": ("experiments.commands.hydra_verbs", "dedup", "dedup"),
}

HELP = """\
evomerge: evolve one multi-task model from a base and its fine-tuned experts, without gradients

  evomerge search experiment=quickstart       evolve a merge; run it again to continue or to see it
  evomerge search base=DIR 'experts={a:DIR,b:DIR}' 'tasks=[arc_easy,FILE.jsonl]' budget=200
                                              your own; `check` first tells what it will take
  evomerge search -m strategy=cma,random seed=0,1    sweep; what is finished is not run twice
  evomerge check experiment=quickstart        everything that can be known before the work starts
  evomerge merge method=ties base=DIR 'experts={a:DIR,b:DIR}' out=DIR
  evomerge merge mergekit=FILE.yaml out=DIR   run a mergekit file as it is
  evomerge search mergekit_evolve=FILE.yml    and one of mergekit-evolve
  evomerge evaluate model=DIR 'tasks=[arc_easy]'  score one model
  evomerge statistics kind=gram out=DIR ...   what method=regmean reads; kind=fisher: method=fisher
  evomerge split vendor base=ID blocks=2 ...  fine-tune on noised states that a customer sends
  evomerge split customer base=ID blocks=2 .. send them: texts and tokens stay here (docs/split.md)
  evomerge rebuild RUN/recipe.json --out DIR  the same weights again, from the recipe
  evomerge report RUN                         write RUN/report.html again
  evomerge runs DIR                           the runs below a directory: state, fitness, time
  evomerge verify RUN                         model and card made again, compared number by number
  evomerge push RUN OWNER/NAME                the model to the Hugging Face Hub, private
  evomerge pseudonymize IN.jsonl OUT.jsonl --fields FILE --key-env NAME    keyed slugs for values
  evomerge reference-losses BASE TEXTS.jsonl OUT.json    calibrates evaluator membership
  evomerge compare RUN RUN ... --out DIR      mean and sd over seeds, paired tests, plots
  evomerge zoo add|list|show|open|...         many models in one place, what they share stored once

search, check, merge, evaluate, statistics, split and zoo dedup are Hydra applications:
NAME=VALUE replaces an option, GROUP=NAME a part, `evomerge search --cfg job` prints the whole
configuration, `evomerge VERB --help` more; eval "$(evomerge --install-completion bash)" completes
words with the tab key, also in zsh; in fish: evomerge --install-completion fish | source.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit status or raises SystemExit with it.

    0: well, 1: failed, 2: wrong input, 130: interrupted, 141: nobody reads the output any more.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if set(arguments) & set(completion.WORDS):
        completion.complete(arguments, {verb: config for verb, (_, _, config) in _VERBS.items()})
        return 0
    pair = arguments[:1] == ["split"] or arguments[:2] == ["zoo", "dedup"]
    words = 2 if pair else 1
    verb, rest = " ".join(arguments[:words]) or "help", arguments[words:]
    with quiet_pipe():
        if verb not in _VERBS:
            return _without_verb(verb)
        module, function, config_name = _VERBS[verb]
        run = getattr(importlib.import_module(module), function)
        try:
            if config_name is None:
                run(rest)
                return 0
            import hydra

            from experiments.commands.nearest import nearest_words
            from experiments.commands.shorthands import longhand

            sys.argv = [f"evomerge {verb}"]
            rest = longhand(config_name, rest)
            sys.argv = [f"evomerge {verb}", *rest]
            with nearest_words(config_name, rest):
                hydra.main("pkg://conf", config_name, version_base="1.3")(run)()
        except KeyboardInterrupt:
            print(f"evomerge {verb}: interrupted; the same command continues it", file=sys.stderr)
            return 130
    return 0


def _without_verb(word: str) -> int:
    """Prints the help, the version or what is wrong with the word; returns the exit status."""
    if word in ("-h", "--help", "help"):
        print(HELP, end="")
    elif word == "--version":
        from importlib.metadata import version

        print(f"evomerge {version('evomerge')}")
    else:
        expected = f"expected {', '.join(_VERBS)}{did_you_mean(word, _VERBS)}"
        print(f"evomerge: unknown verb {word!r}: {expected}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
