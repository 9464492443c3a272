"""Handwritten digits of scikit-learn, and a small transformer that has read printed ones only."""

from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from experiments.experts.training.loop import (
    Schedule,
    adamw,
    clipped_step,
    gradient_of,
    train_on,
)
from experiments.experts.training.train import RecordLosses
from merging.seeding import generator, stable_seed

CLASSES = 10
_SIDE = 8  # pixels
_LARGE = 48  # pixels, before they are averaged
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10")


def handwritten() -> tuple[Tensor, Tensor]:
    """Returns ``(1797, 1, 8, 8)`` float32 in [-1, 1] and ``(1797,)`` int64 classes."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    return _scaled(digits.images / 16), torch.from_numpy(digits.target.astype(np.int64))


def printed(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns as many digits in fonts that matplotlib carries, turned, moved and smoothed."""
    draw = np.random.default_rng(stable_seed(seed, "printed digits"))
    labels = draw.integers(0, CLASSES, count)
    return _scaled(np.stack([_printed(label, draw) for label in labels])), torch.from_numpy(labels)


def _printed(label: int, draw: np.random.Generator) -> npt.NDArray[np.float64]:
    page = Image.new("L", (_LARGE, _LARGE))
    font = _font(_FONTS[draw.integers(len(_FONTS))], int(draw.integers(36, 56)))
    place = (_LARGE / 2 + draw.normal(0, 2), _LARGE / 2 + draw.normal(0, 2))
    ImageDraw.Draw(page).text(place, str(label), fill=255, font=font, anchor="mm")
    turned = page.rotate(draw.normal(0, 8), Image.Resampling.BILINEAR)
    small = turned.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    image = np.asarray(small, dtype=np.float64)
    scaled: npt.NDArray[np.float64] = image / max(1.0, image.max())
    return scaled


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    font = files("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(font), size)


def _scaled(images: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy((2 * images - 1).astype(np.float32)).unsqueeze(1)


def new_transformer(hidden: int, layers: int, *, seed: int) -> ViTForImageClassification:
    """Returns a classifier of patches of 2 x 2 pixels; it depends on the seed alone."""
    config = ViTConfig(  # type: ignore[call-arg]
        image_size=_SIDE,
        patch_size=2,
        num_channels=1,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=CLASSES,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "transformer"))
        return ViTForImageClassification(config)


def train_on_printed(model: nn.Module, schedule: Schedule, count: int, *, seed: int) -> None:
    """Trains a classifier in place on printed digits, and leaves it in evaluation mode."""
    train_on_images(model, *printed(count, seed), schedule, seed, "order of printed digits")


def train_on_images(
    model: nn.Module, images: Tensor, labels: Tensor, schedule: Schedule, seed: int, *order: str
) -> None:
    """Trains a classifier in place on images drawn at random by `seed` and `order`."""
    losses_of = image_losses(images, labels)
    draw = generator(seed, *order)
    batches = (
        torch.randint(len(labels), (schedule.batch,), generator=draw).tolist()
        for _ in range(schedule.steps)
    )
    optimizer = adamw(model, weight_decay=0.01)
    train_on(
        model,
        batches,
        gradient_of(lambda batch: losses_of(model, batch)[0].mean()),
        clipped_step(model, optimizer, 1.0),
        optimizer,
        rate_at=schedule.rate_at,
        dropout=seed,
        on_step=lambda loss: None,
    )


def image_losses(images: Tensor, labels: Tensor) -> RecordLosses:
    """Returns what gives the cross-entropies of images, by number, in nats."""

    def losses_of(model: nn.Module, part: object) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(part)
        logits = model(pixel_values=images[chosen]).logits
        losses = cross_entropy(logits, labels[chosen], reduction="none")
        return losses, torch.ones(len(chosen), dtype=torch.int64)

    return losses_of


def trainable_privately(model: nn.Module) -> None:
    """Freezes what one record has no gradient of its own for: class token and positions."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith(("cls_token", "position_embeddings")))
