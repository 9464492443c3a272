"""The verbs that need no configuration: rebuild, report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import UserError, explained


def rebuild(arguments: Sequence[str]) -> int:
    """Writes the model of a recipe, bit for bit the one that the run wrote."""
    parser = argparse.ArgumentParser(prog="evomerge rebuild", description=rebuild.__doc__)
    parser.add_argument("recipe", type=Path, help="a run's recipe.json")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="directory of the model; must not exist")
    target.add_argument("--mergekit", type=Path, help="write the recipe as a mergekit YAML file")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where an expert (or `base`) lies now, if it moved; its content must be the same",
    )
    parser.add_argument("--trust-remote-code", action="store_true")
    options = parser.parse_args(arguments)
    try:
        with explained():
            _rebuild(options)
    except UserError as error:
        print(f"evomerge rebuild: {error}", file=sys.stderr)
        return 2
    return 0


def _rebuild(options: argparse.Namespace) -> None:
    from merging.files import write_text
    from merging.ledger import Ledger
    from merging.mechanisms import PrivacyRecordError
    from merging.mergekit_yaml.writing import to_mergekit
    from merging.recipe import Recipe
    from merging.save import save_model

    recipe = Recipe.load(options.recipe)
    _check_target(options.mergekit or options.out, "--mergekit" if options.mergekit else "--out")
    replaced = {}
    for pair in options.source:
        name, separator, path = pair.partition("=")
        if not separator:
            raise ValueError(f"--source {pair}: expected NAME=PATH")
        replaced[name] = path
    pool = recipe.open_pool(replaced=replaced, trust_remote_code=options.trust_remote_code)
    if options.mergekit is not None:
        write_text(options.mergekit, to_mergekit(recipe, pool))
        print(options.mergekit)
        return
    try:
        ledger = Ledger.rebuilt(recipe.privacy, pool, recipe.plan)
    except PrivacyRecordError as error:
        raise PrivacyRecordError(f"{options.recipe}: {error}") from error
    card = options.recipe.parent / "model" / "README.md"
    save_model(
        pool,
        recipe.plan.weights(pool, dtype=recipe.torch_dtype),
        options.out,
        dtype=recipe.torch_dtype,
        card=card.read_text(encoding="utf-8") if card.exists() else None,
        ledger=ledger,
    )
    print(options.out)


def _check_target(path: Path, option: str) -> None:
    from experiments.run_directory import check_writable

    if path.exists() and option == "--out":
        raise UserError(f"--out {path} exists already: name a new directory")
    if option == "--mergekit" and not path.absolute().parent.is_dir():
        raise UserError(f"--mergekit {path}: its directory does not exist: make it first")
    check_writable(path.absolute().parent if option == "--mergekit" else path, option)


def report(arguments: Sequence[str]) -> int:
    """Writes RUN/report.html from the files of a run and prints its table."""
    parser = argparse.ArgumentParser(prog="evomerge report", description=report.__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="a run's directory")
    options = parser.parse_args(arguments)
    from experiments.report import write_report
    from experiments.run_files import read_json
    from experiments.table import table

    try:
        with explained():
            for run in options.run:
                path = write_report(run)
                if (run / "summary.json").exists():
                    print(table(read_json(run / "summary.json")))
                print(path)
    except UserError as error:
        print(f"evomerge report: {error}", file=sys.stderr)
        return 2
    return 0
