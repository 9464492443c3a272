"""The verbs that need no configuration: rebuild, report, pseudonymize, reference-losses."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runs.errors import UserError, explained, one_sentence

if TYPE_CHECKING:
    from merging.recipe import Recipe


def rebuild(arguments: Sequence[str]) -> None:
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
    with one_sentence("evomerge rebuild"), explained():
        _rebuild(options)


def _rebuild(options: argparse.Namespace) -> None:
    from experiments.zoo.opening import open_sources
    from merging.checkpoints.mechanisms import PrivacyRecordError
    from merging.files import write_text
    from merging.mergekit_yaml.writing import to_mergekit
    from merging.recipe import Recipe
    from merging.saving.rebuild import rebuild as write_rebuilt

    recipe = Recipe.load(options.recipe)
    _check_target(options.mergekit or options.out, "--mergekit" if options.mergekit else "--out")
    replaced = {}
    for pair in options.source:
        name, separator, path = pair.partition("=")
        if not separator:
            raise ValueError(f"--source {pair}: expected NAME=PATH")
        replaced[name] = path
    replaced |= _in_zoos(recipe, replaced, options.recipe.parent)
    places = {name: each.source for name, each in recipe.ingredients.items()}
    open_sources({**places, **replaced}.values())
    pool = recipe.open_pool(replaced=replaced, trust_remote_code=options.trust_remote_code)
    if options.mergekit is not None:
        write_text(options.mergekit, to_mergekit(recipe, pool))
        print(options.mergekit)
        return
    card = options.recipe.parent / "model" / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else None
    try:
        write_rebuilt(recipe, pool, options.out, card=text)
    except PrivacyRecordError as error:
        raise PrivacyRecordError(f"{options.recipe}: {error}") from error
    print(options.out)


def _in_zoos(recipe: "Recipe", replaced: Mapping[str, str], run: Path) -> dict[str, str]:
    """Returns where in a zoo, the run's or the default one, lies what is not where it lay."""
    from omegaconf import OmegaConf

    from experiments.searches.keeping import zoo_directory
    from merging.zoo.store import Zoo, default_directory
    from merging.zoo_recipes import ingredients_in, lacking

    config, found = run / "config.yaml", dict[str, str]()
    options = OmegaConf.load(config) if config.is_file() else OmegaConf.create()
    told = zoo_directory(OmegaConf.select(options, "zoo"))
    for place in (told, default_directory()):
        gone = lacking(recipe, {*replaced, *found})
        if gone and place is not None and (place / "format").is_file():
            places = ingredients_in(Zoo.open(place), recipe)
            found |= {role: at for role, at in places.items() if role in gone}
    return found


def _check_target(path: Path, option: str) -> None:
    from experiments.runs.directory import check_writable

    if path.exists() and option == "--out":
        raise UserError(f"--out {path} exists already: name a new directory")
    if option == "--mergekit" and not path.absolute().parent.is_dir():
        raise UserError(f"--mergekit {path}: its directory does not exist: make it first")
    check_writable(path.absolute().parent if option == "--mergekit" else path, option)


def report(arguments: Sequence[str]) -> None:
    """Writes RUN/report.html from the files of a run and prints its table."""
    parser = argparse.ArgumentParser(prog="evomerge report", description=report.__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="a run's directory")
    options = parser.parse_args(arguments)
    from experiments.reports.report import write_report
    from experiments.reports.table import table
    from experiments.runs.files import read_json

    with one_sentence("evomerge report"), explained():
        for run in options.run:
            path = write_report(run)
            if (run / "summary.json").exists():
                print(table(read_json(run / "summary.json")))
            print(path)


def pseudonymize(arguments: Sequence[str]) -> None:
    """Replaces identifiers by keyed slugs, alike everywhere, in records or in canaries."""
    parser = argparse.ArgumentParser(
        prog="evomerge pseudonymize", description=pseudonymize.__doc__
    )
    parser.add_argument("source", type=Path, metavar="IN.jsonl", help="a JSON object in each line")
    parser.add_argument("target", type=Path, metavar="OUT.jsonl", help="must not exist")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--fields", type=Path, help="YAML or JSON: path of a field to its type")
    what.add_argument(
        "--canaries", action="store_true", help="IN holds canaries: slugs of values and variants"
    )
    parser.add_argument(
        "--everywhere", action="store_true", help="also where these values stand in other texts"
    )
    key = parser.add_mutually_exclusive_group(required=True)
    key.add_argument("--key-env", metavar="NAME", help="environment variable that holds the key")
    key.add_argument("--key-file", type=Path, help="file that holds the key")
    parser.add_argument("--digits", type=int, default=8, help="hexadecimal digits of a slug")
    options = parser.parse_args(arguments)
    with one_sentence("evomerge pseudonymize"), explained():
        print(f"{options.target}: {_pseudonymize(options)} lines")


def _pseudonymize(options: argparse.Namespace) -> int:
    from experiments.pseudonyms.pseudonymize import (
        pseudonymize_canaries,
        pseudonymize_records,
        read_fields,
        read_key,
    )
    from experiments.pseudonyms.pseudonyms import Pseudonyms
    from experiments.pseudonyms.register import register

    secret = read_key(variable=options.key_env, file=options.key_file, environment=os.environ)
    if options.canaries and options.everywhere:
        raise UserError("--everywhere is for records: leave it out, or name --fields")
    with register(secret) as claim:
        pseudonyms = Pseudonyms(secret, digits=options.digits, claim=claim)
        if options.canaries:
            return pseudonymize_canaries(options.source, options.target, pseudonyms)
        return pseudonymize_records(
            options.source,
            options.target,
            read_fields(options.fields),
            pseudonyms,
            everywhere=options.everywhere,
        )


def reference_losses(arguments: Sequence[str]) -> None:
    """Writes a model's losses on texts, which calibrate membership inference on other models."""
    parser = argparse.ArgumentParser(
        prog="evomerge reference-losses", description=reference_losses.__doc__
    )
    parser.add_argument("model", help="usually the base: a Hugging Face id or directory")
    parser.add_argument("data", help="JSON lines with texts and members, as evaluator membership")
    parser.add_argument("out", type=Path, help="file to write: the evaluator's `reference`")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--member-field", default="member")
    parser.add_argument("--max-length", type=int, help="most tokens of a text, as in the run")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args(arguments)
    from evaluators.requests import EvaluationError, TransientFailure
    from experiments.commands.reference_losses import write_losses

    with one_sentence("evomerge reference-losses"), explained():
        try:
            count = write_losses(**vars(options))
        except (EvaluationError, TransientFailure) as error:
            raise UserError(str(error)) from error
    print(f"{options.out}: {count} texts")
