"""From what a user names, a directory or a Hugging Face id, to a directory on this machine."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from merging.checkpoints.single_files import directory_of
from merging.weight_names import holds_weights
from merging.weights import CheckpointError
from merging.zoo.store import SOURCE, Zoo

_SMALL = (
    "*.json",
    "*.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.bpe",
    "*.vocab",
    "*.jinja",
    "*.md",
    "*.py",
    "LICENSE*",
)
_TEMPLATES = "additional_chat_templates"  # beside chat_template.jinja, one a file
_IGNORED = ("consolidated*", "*.msgpack", "*.h5", "*.onnx", "training_args.bin", "optimizer*")


def resolve(source: str, revision: str | None = None) -> Path:
    """Returns the directory of `source`, fetched to the Hugging Face cache where needed.

    A file of weights, or a directory with a GGUF file and no other weights, stands for the
    directory that `directory_of` makes of it.

    A directory that exists wins over an id of that name. ``zoo:NAME`` and ``zoo:DIR/NAME`` are
    models of a zoo: of theirs it is the view.

    Raises:
        CheckpointError: no such directory; an id that cannot be found or fetched; a zoo that has
            no such model.
    """
    if source.startswith(SOURCE):
        zoo, name = Zoo.of(source)
        return zoo.view(name)
    local = Path(source).expanduser()
    if local.is_dir():
        if not any(local.iterdir()):
            raise CheckpointError(
                f"{local} is an empty directory; expected a checkpoint: config.json and weights"
            )
        alone = [] if holds_weights(local) else sorted(local.glob("*.gguf"))
        return directory_of(alone[0]) if len(alone) == 1 else local
    if local.exists():
        return directory_of(local)
    if is_path(source):
        raise CheckpointError(
            f"{local} does not exist; expected a checkpoint directory (relative to {Path.cwd()})"
        )
    return _fetch(source, revision)


def is_path(source: str) -> bool:
    """Whether a source can be no id of Hugging Face, nor a model of a zoo."""
    return source.startswith((".", "~", "/")) or source.count("/") > 1


def modules(directory: Path) -> list[str]:
    """Returns the folders that sentence-transformers' ``modules.json`` makes part of the model."""
    try:
        listed = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
        return [Path(module["path"]).parts[0] for module in listed if module["path"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _fetch(source: str, revision: str | None) -> Path:
    """Downloads safetensors; pickles only where a repository has nothing else."""

    def download(*patterns: str, ignored: Sequence[str] = _IGNORED) -> Path:
        found = snapshot_download(
            source, revision=revision, allow_patterns=[*patterns], ignore_patterns=[*ignored]
        )
        return Path(found)

    try:
        for weights in ("*.safetensors", "*.bin"):
            path = download(*_SMALL, weights, ignored=("*/*", *_IGNORED))
            if holds_weights(path, ".safetensors"):  # not the pickles' index, which is small
                break
        download(*(f"{folder}/*" for folder in (*modules(path), _TEMPLATES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        offline = " while HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"{source!r} is no directory here and no Hugging Face id{at} that could be fetched"
            f"{offline} ({type(error).__name__}); correct the name, or download it first"
        ) from error
    return path
