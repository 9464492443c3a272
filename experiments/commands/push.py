"""`evomerge push`: a model to the Hugging Face Hub."""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from experiments.runs.directory import finished_run
from experiments.runs.errors import UserError, explained, one_sentence
from experiments.runs.files import read_json
from experiments.runs.sources import source_and_hash
from merging.files import write_text


def push(arguments: Sequence[str]) -> None:
    """Uploads a run's model and nothing else; after a cut the same line goes on.

    It reads the token of `hf auth login` or HF_TOKEN, which goes to the Hub and nowhere else.
    """
    parser = argparse.ArgumentParser(prog="evomerge push", description=push.__doc__)
    parser.add_argument("run", type=Path, help="a run's directory, or that of a merged model")
    parser.add_argument("repo", metavar="OWNER/NAME", help="on the Hub; made if it is not there")
    parser.add_argument(
        "--public", action="store_true", help="make a new one readable by everyone, not private"
    )
    options = parser.parse_args(arguments)
    with one_sentence("evomerge push"):
        model = _model(options.run)
        finished_run(model)
        with explained(), _shown(model) as folder:
            print(_pushed(folder, options.repo, private=not options.public))


def _model(run: Path) -> Path:
    """Returns the folder of a model's files, which are all that is uploaded."""
    found = next((f for f in (run / "model", run) if (f / "config.json").is_file()), None)
    if found is None:
        raise UserError(
            f"{run} holds no model: name a finished run, or evomerge rebuild "
            f"{run / 'recipe.json'} --out DIR and push DIR"
        )
    return found


@contextmanager
def _shown(model: Path) -> Iterator[Path]:
    """Yields a folder of links to a model's files; no recipe or adapter in it has a path."""
    from experiments.searches.published import shown_recipe
    from merging.recipe import Recipe

    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / model.resolve().parent.name / "model"
        shutil.copytree(model.resolve(), folder, copy_function=os.symlink)
        if (file := folder / "recipe.json").exists():
            shown_recipe(Recipe.load(file)).save(file)  # in the place of the link
        for file in folder.rglob("adapter_config.json"):
            config = read_json(file)
            base = {"source": config["base_model_name_or_path"], "sha256": ""}
            config["base_model_name_or_path"] = source_and_hash(base)[0]
            write_text(file, json.dumps(config, indent=2) + "\n")
        yield folder


def _pushed(model: Path, repo: str, *, private: bool) -> str:
    """Returns the address of the repository that now holds all files in `model`.

    Raises:
        UserError: it cannot be reached, written or made; what was uploaded is not sent again.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    # The bases of the Hub's error: its HTTP client's own, whichever client that is, and OSError.
    bases = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)
    failures: tuple[type[Exception], ...] = (*bases, ValueError, RuntimeError)
    try:
        url = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=url.repo_id,
            folder_path=model,
            commit_message=f"A merge by evomerge: {model.parent.name}",
            ignore_patterns=[".*", "*/.*"],
        )
    except failures as error:
        raise UserError(
            f"{repo}: {_without_token(error)}; check the name and `hf auth login`, then run the "
            "same command again: it goes on from there"
        ) from None
    return str(url)


def _without_token(error: BaseException) -> str:
    from huggingface_hub import get_token

    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text.replace(token, "***") if (token := get_token()) else text
