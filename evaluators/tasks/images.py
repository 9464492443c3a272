"""Images of a local file: in an array, or one file each; and as models take them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from evaluators.tasks.data import Line, digest, read_lines


class Picture(NamedTuple):
    """An image and its label.

    Args:
        pixels: ``(height, width, channels)`` uint8; or ``(channels, height, width)`` float, which
            is taken as it is.
    """

    place: str
    pixels: npt.NDArray[Any]
    label: int | str

    @property
    def digest(self) -> str:
        """Digest of its content, equal on every machine."""
        pixels = self.pixels
        return digest(str(pixels.dtype), list(pixels.shape), pixels.tobytes().hex())


def read_pictures(path: Path, image_field: str, label_field: str) -> list[Picture]:
    """Returns the items of an ``.npz`` file or of a table that names an image in each line.

    Raises:
        ValueError: an array or an image is missing, or of another kind; names it.
    """
    if path.suffix == ".npz":
        return _arrays(path)
    return [
        Picture(str(line), read_image(line, image_field), line.field(label_field, (int, str)))
        for line in read_lines(path)
    ]


def read_image(line: Line, field: str) -> npt.NDArray[np.uint8]:
    """Returns the image whose path, relative to the line's file, a field holds, as RGB."""
    file = line.path.parent / line.text(field)
    if not file.is_file():
        raise ValueError(f"{line}: image file {file} does not exist")
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def pixel_inputs(picture: Picture, processor: Any) -> dict[str, Tensor]:
    """Returns what a model takes of an image, ``pixel_values`` float32 and what goes with them."""
    if picture.pixels.dtype.kind == "f":
        return {"pixel_values": torch.from_numpy(picture.pixels.astype(np.float32))}
    if processor is None:
        raise ValueError(
            f"{picture.place}: images of integers need an image processor; the base has none"
        )
    batch = processor(Image.fromarray(picture.pixels), return_tensors="pt")
    inputs = {name: value[0] for name, value in batch.items() if isinstance(value, Tensor)}
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in inputs.items()}


def _arrays(path: Path) -> list[Picture]:
    with np.load(path, allow_pickle=False) as file:
        missing = {"images", "labels"} - set(file.files)
        if missing:
            raise ValueError(f"{path}: no array {', '.join(sorted(missing))}; it has {file.files}")
        images, labels = file["images"], file["labels"]
    if len(images) != len(labels) or images.ndim != 4 or labels.ndim != 1:
        raise ValueError(
            f"{path}: images must be (items, height, width, channels) and labels (items,), got "
            f"{images.shape} and {labels.shape}"
        )
    if len(images) == 0:
        raise ValueError(f"data file {path} is empty")
    if labels.dtype.kind not in "iuU":
        raise ValueError(f"{path}: labels must be integers or texts, got {labels.dtype}")
    known: Sequence[int | str] = labels.tolist()
    return [
        Picture(f"{path} item {i}", image, label)
        for i, (image, label) in enumerate(zip(images, known, strict=True))
    ]
