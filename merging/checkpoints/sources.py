"""From what a user names, a directory or a Hugging Face id, to a directory on this machine."""

import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from merging.weights import CheckpointError

_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.md", "*.py", "LICENSE*")
_IGNORED = ("*/*", "consolidated*", "*.msgpack", "*.h5", "*.onnx", "training_args.bin")


def resolve(source: str, revision: str | None = None) -> Path:
    """Returns the directory of `source`, fetched to the Hugging Face cache where needed.

    A directory that exists wins over an id of that name.

    Raises:
        CheckpointError: no such directory; an id that cannot be found or fetched.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        if not any(local.iterdir()):
            raise CheckpointError(
                f"{local} is an empty directory; expected a checkpoint: config.json and weights"
            )
        return local
    if local.exists():
        raise CheckpointError(f"{local} is a file; name the checkpoint's directory instead")
    if source.startswith((".", "~")) or local.is_absolute() or source.count("/") > 1:
        raise CheckpointError(
            f"{local} does not exist; expected a checkpoint directory (relative to {Path.cwd()})"
        )
    return _fetch(source, revision)


def _fetch(source: str, revision: str | None) -> Path:
    """Downloads safetensors; pickles only where a repository has nothing else."""
    try:
        for weights in ("*.safetensors", "*.bin"):
            path = Path(
                snapshot_download(
                    source,
                    revision=revision,
                    allow_patterns=[*_SMALL, weights],
                    ignore_patterns=list(_IGNORED),
                )
            )
            if any(path.glob(weights)):
                break
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        offline = " while HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"{source!r} is no directory here and no Hugging Face id{at} that could be fetched"
            f"{offline} ({type(error).__name__}); correct the name, or download it first"
        ) from error
    return path
