"""``evomerge zoo``: the command line of a zoo."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.runs.errors import UserError, explained, one_sentence
from experiments.runs.spelling import did_you_mean

HELP = """\
evomerge zoo: many models in one place, what they share stored once, each as it was to the bit

  evomerge zoo add DIR ...            directories, Hugging Face ids; a RUN or its recipe.json: the
                                      winner as its recipe, kilobytes
  evomerge zoo list [--plot FILE]     all models: what they are, what they cost, ε
  evomerge zoo show NAME              one model: tensors, what it shares with whom, privacy, recipe
  evomerge zoo open NAME --out DIR    plain files again, byte for byte
  evomerge zoo best --base NAME --dataset NAME --epsilon E
                                      the best merge at an ε of models on one private data set
  evomerge zoo dedup OPTION=VALUE ... models from a base's blocks, within a loss of accuracy and ε
  evomerge zoo check                  reads everything and names what is damaged
  evomerge zoo remove NAME ...        takes models out; what others need stays
  evomerge zoo gc                     frees the bytes that no model needs

`zoo:NAME` stands wherever a checkpoint may: `evomerge merge experts.base=zoo:base ...`,
`evomerge evaluate model=zoo:NAME`; of another zoo zoo:DIR/NAME. `evomerge search zoo=true ...`
keeps the winner and who lived at the end. The zoo is --zoo DIR, else $EVOMERGE_ZOO, else
~/.local/share/evomerge/zoo. `evomerge zoo VERB --help` says more.
"""


def zoo(arguments: Sequence[str]) -> None:
    """Runs one of the zoo's verbs."""
    verb, rest = (list(arguments) or ["help"])[0], list(arguments[1:])
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    command = f"evomerge zoo {verb}"
    with one_sentence("evomerge zoo"):
        if verb not in _VERBS:
            known = [*_VERBS, "dedup"]
            expected = f"expected {', '.join(known)}{did_you_mean(verb, known)}"
            raise UserError(f"unknown verb {verb!r}: {expected}")
    run, describe = _VERBS[verb]
    parser = argparse.ArgumentParser(prog=command, description=run.__doc__)
    describe(parser)
    parser.add_argument("--zoo", type=_path, metavar="DIR", help="the zoo; else $EVOMERGE_ZOO")
    options = parser.parse_args(rest)
    with one_sentence(command), explained():
        run(options)


def _path(text: str) -> Path:
    return Path(text).expanduser()  # a shell leaves the ~ of --out=~/x as it is


def _add(options: argparse.Namespace) -> None:
    """Adds models; what is there already, block by block, costs nothing again."""
    from experiments.zoo.adding import add

    for line in add(options.sources, options.zoo, name=options.name, base=options.base):
        print(line)


def _describe_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a checkpoint's or an adapter's directory or id; a run's directory or a recipe.json",
    )
    parser.add_argument("--name", help="of the model; without it the directory's")
    parser.add_argument(
        "--base", metavar="NAME", help="model of the zoo that it was made from; else found"
    )


def _list(options: argparse.Namespace) -> None:
    """Lists all models and what they cost."""
    from experiments.zoo.listing import list_models

    print(list_models(options.zoo, as_json=options.json, plot=options.plot))


def _describe_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="every number, for programs")
    parser.add_argument(
        "--plot", type=_path, metavar="FILE", help="also draw who shares what: .png, .svg or .pdf"
    )


def _show(options: argparse.Namespace) -> None:
    """Shows one model: what it is made of, whom it shares it with, what is promised of it."""
    from experiments.zoo.showing import show

    print(show(options.zoo, options.name))


def _describe_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")


def _open(options: argparse.Namespace) -> None:
    """Writes a model's plain files: those that were added, or the recipe's, bit for bit."""
    from experiments.zoo.opening import open_model

    open_model(options.zoo, options.name, options.out)
    print(options.out)


def _describe_open(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--out", type=_path, required=True, help="directory; must not exist")


def _check(options: argparse.Namespace) -> None:
    """Reads every block and compares it with its hash; names damaged models."""
    from experiments.zoo.upkeep import check

    print(check(options.zoo))


def _gc(options: argparse.Namespace) -> None:
    """Frees the bytes that no model needs any more."""
    from experiments.zoo.upkeep import collect

    print(collect(options.zoo))


def _remove(options: argparse.Namespace) -> None:
    """Takes models out of the zoo; `evomerge zoo gc` frees their bytes."""
    from experiments.zoo.upkeep import remove

    print(remove(options.zoo, options.names, even_ingredients=options.force))


def _describe_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument(
        "--force", action="store_true", help="also what recipes in the zoo are made from"
    )


def _best(options: argparse.Namespace) -> None:
    """Adds the best merge at an ε of the zoo's models on one private data set, as a recipe."""
    from experiments.commands.zoo_best import best

    given = {key: vars(options)[key] for key in ("base", "dataset", "epsilon", "delta", "name")}
    print(*best(options.zoo, options.names, **given), sep="\n")


def _describe_best(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; without: all that fit")
    parser.add_argument("--base", required=True, metavar="NAME", help="what they were made from")
    parser.add_argument("--dataset", required=True, help="the private data, as their records say")
    parser.add_argument("--epsilon", required=True, type=float, help="what the merge may cost")
    parser.add_argument("--delta", type=float, help="without it the largest that a model states")
    parser.add_argument("--name", help="of the merge; without it of data set and ε")


def _describe_nothing(parser: argparse.ArgumentParser) -> None:
    """Adds no argument."""


_VERBS = {
    "add": (_add, _describe_add),
    "list": (_list, _describe_list),
    "show": (_show, _describe_show),
    "open": (_open, _describe_open),
    "best": (_best, _describe_best),
    "check": (_check, _describe_nothing),
    "gc": (_gc, _describe_nothing),
    "remove": (_remove, _describe_remove),
}
