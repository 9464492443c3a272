"""``evomerge compare``: the command line of a comparison."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.compare.comparison import Comparison
from experiments.compare.page import render_comparison
from experiments.compare.run import compare as compare_runs
from experiments.compare.text import (
    cost_table,
    difference_table,
    fitness_table,
    markdown,
    plain,
    score_table,
    to_json,
)
from experiments.runs.directory import check_writable
from experiments.runs.errors import UserError, explained, one_sentence
from merging.files import write_text


def compare(arguments: Sequence[str]) -> None:
    """Compares finished runs: groups that differ in more than the seed, tested in pairs."""
    options = _parser().parse_args(arguments)
    with one_sentence("evomerge compare"), explained():
        if options.out is not None:
            check_writable(options.out, "--out")
        comparison = compare_runs(options.runs, against=options.against, target=options.target)
        if options.out is not None:
            write_files(comparison, options.out)
    print(plain(comparison))
    if options.out is not None:
        print(f"\npage      {options.out / 'compare.html'}")
    if options.wandb:
        with one_sentence("evomerge compare"):
            track(comparison, options.out or Path.cwd(), options.project)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evomerge compare", description=compare.__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="directories of runs, or directories that hold them"
    )
    parser.add_argument(
        "--against",
        metavar="GROUP",
        help="test every group against this one (words of its label, alternatives separated by |; "
        "of several the best), or against the best `static`, `expert` or `base`; "
        "without it all pairs are tested",
    )
    parser.add_argument(
        "--target",
        type=float,
        help="search fitness whose reaching is timed; without it the best static merge's",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write compare.md, compare.html and compare.json"
    )
    parser.add_argument(
        "--wandb", action="store_true", help="log the tables as a W&B run named compare"
    )
    parser.add_argument("--project", default="evomerge", help="W&B project of --wandb")
    return parser


def write_files(comparison: Comparison, out: Path) -> None:
    """Writes ``compare.md``, ``compare.html`` and ``compare.json`` into `out`, made if missing."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "compare.md", "# Comparison of runs\n\n" + markdown(comparison))
    write_text(out / "compare.html", render_comparison(comparison))
    values = json.dumps(to_json(comparison), indent=1, allow_nan=False)
    write_text(out / "compare.json", values + "\n")


def track(comparison: Comparison, out: Path, project: str) -> None:
    """Logs the tables as one Weights & Biases run named ``compare``, below ``out/wandb``.

    The environment variable ``WANDB_MODE`` decides between ``offline`` (the default), ``online``
    and ``disabled``.

    Raises:
        UserError: W&B cannot be reached; says what to do.
    """
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or "offline"
    try:
        run = wandb.init(
            mode=mode,
            project=project,
            name="compare",
            job_type="compare",
            dir=out,
            config={"against": comparison.against, "target": comparison.target},
            settings=wandb.Settings(
                silent=mode != "online",
                console="off",
                x_disable_stats=True,
                reinit="finish_previous",
            ),
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"--wandb: W&B cannot be reached ({error}): run `wandb login`, or set "
            "WANDB_MODE=offline"
        ) from error
    tables = {
        "groups": fitness_table(comparison),
        "scores": score_table(comparison),
        "cost": cost_table(comparison),
        "tests": difference_table(comparison),
    }
    run.log({k: wandb.Table(columns=[*t.head], data=[*t.rows]) for k, t in tables.items()})
    run.finish()
