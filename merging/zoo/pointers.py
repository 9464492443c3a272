"""Pointers: small files that stand in a view where a model's safetensors files would lie."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from merging.zoo.errors import ZooError

_MAGIC = b"evomerge zoo pointer "
_LARGEST_BYTES = 2**14


@dataclass(frozen=True)
class Pointer:
    """One weight file of a stored model.

    Args:
        zoo: directory of the zoo; in the file relative to it, where the view lies in the zoo.
        model: number of the model in the zoo's index.
        name: of the file in the model.
        sha256: of the file's bytes, as it was added.
        size: its length.
    """

    zoo: Path
    model: int
    name: str
    sha256: str
    size: int

    def write(self, file: Path) -> None:
        """Writes the pointer as `file`."""
        content = asdict(self) | {"zoo": str(self.zoo)}
        file.write_bytes(_MAGIC + json.dumps(content).encode() + b"\n")


def follow(file: Path) -> Pointer | None:
    """Returns the pointer that `file` is; None: it is something else.

    Raises:
        ZooError: a pointer that cannot be read.
        OSError: no such file.
    """
    if file.stat().st_size > _LARGEST_BYTES:
        return None
    raw = file.read_bytes()
    if not raw.startswith(_MAGIC):
        return None
    try:
        content = json.loads(raw.removeprefix(_MAGIC))
        zoo = file.parent / content.pop("zoo")
        return Pointer(zoo.resolve(), **content)
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(
            f"{file} is a damaged pointer into a zoo ({error!r}); remove its directory, "
            "which is made again"
        ) from error
