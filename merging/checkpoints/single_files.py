"""A model in one file, GGUF or safetensors under a name of its own, seen as a directory."""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from merging.checkpoints import naming
from merging.checkpoints.hashing import file_sha256
from merging.checkpoints.quiet import quiet_transformers
from merging.checkpoints.weight_files import WeightFiles
from merging.files import cache_dir, made_whole
from merging.weight_names import OTHER_FORMS, made_here
from merging.weights import CheckpointError

logger = logging.getLogger(__name__)

_LARGEST_BYTES = 100 * 2**20
_OF_OTHER_WEIGHTS = ("*.safetensors", *OTHER_FORMS, "*.index.json", "privacy.json")


def directory_of(file: Path) -> Path:
    """Returns a directory that stands for a file of weights, kept in the cache.

    A safetensors file is read with the configuration and the small files beside it; its own
    privacy.json, if any, is that of the whole directory, so it counts as having none.

    Raises:
        CheckpointError: another kind of file, no configuration beside it, or one that
            transformers cannot read.
    """
    if file.suffix == ".gguf":
        return dequantised(file)
    if file.suffix == ".safetensors":
        return _beside(file)
    raise CheckpointError(
        f"{file} is a file, and neither .safetensors nor .gguf; name the checkpoint's directory "
        "instead"
    )


def dequantised(file: Path, cache: Path | None = None) -> Path:
    """Returns a directory with the model and tokenizer of a GGUF file, made on first use.

    By transformers' own reader, as a causal language model. Weights are float32: four-bit values
    times a half-precision scale, which no shorter type holds.

    Args:
        cache: directory to make it in; None: ours.

    Raises:
        CheckpointError: transformers cannot read the file.
    """
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    packages = [version(package) for package in ("torch", "transformers", "tokenizers")]
    marks = made_here(file.parent)
    name = _named(file_sha256(file), code, *packages, *map(str, marks))

    def make(draft: Path) -> None:
        logger.info("reading %s, once", file)
        try:
            _convert(file, draft)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise CheckpointError(f"{file} cannot be read as a GGUF file: {error}") from error
        for mark in marks:  # it may rest on private data
            shutil.copyfile(mark, draft / mark.name)

    return made_whole((cache or cache_dir()) / f"gguf-{name}", make)


def _beside(file: Path) -> Path:
    """Returns a directory in which the file has the name that loaders look for."""
    folder = file.parent
    adapter = all(name.startswith("base_model.") for name in WeightFiles((file,)))
    described, loaded = (
        ("adapter_config.json", "adapter_model.safetensors")
        if adapter
        else ("config.json", "model.safetensors")
    )
    if not (folder / described).is_file():
        raise CheckpointError(
            f"{file} holds weights, and there is no {described} beside it; put that of its model "
            "there"
        )
    if file.name == loaded:
        return folder
    others = [
        each
        for each in sorted(folder.iterdir())
        if each.is_file()
        and each.stat().st_size <= _LARGEST_BYTES
        and not any(each.match(pattern) for pattern in _OF_OTHER_WEIGHTS)
    ]
    texts = [f"{each.name} {file_sha256(each)}" for each in others]
    name = _named(str(file.resolve()), file_sha256(file), *texts)

    def make(draft: Path) -> None:
        for each in others:
            shutil.copyfile(each, draft / each.name)
        os.symlink(file.resolve(), draft / loaded)

    return made_whole(cache_dir() / f"file-{name}", make)


def _named(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _convert(file: Path, out: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": file.parent,
        "gguf_file": file.name,
    }
    with quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, output_loading_info=True
        )
        model, found = loaded
        _check_whole(found)
        model.hf_quantizer = None  # its weights are plain by now
        del model.config.quantization_config
        model.save_pretrained(out)
        tokenizer: Any = AutoTokenizer.from_pretrained(**source)
        if _splitting(file) == "smollm":  # transformers reads the vocabulary, not how it is split
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
                [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
            )
        tokenizer.save_pretrained(out)


def _check_whole(found: Mapping[str, Any]) -> None:
    """Raises ValueError for what transformers fills with random numbers, or leaves out."""
    if missing := found["missing_keys"]:
        raise ValueError(
            f"it lacks {len(missing)} tensors of the model that it describes "
            f"({naming.listing(sorted(missing))}); of a model in several files, join them first "
            "(llama-gguf-split --merge)"
        )
    if odd := found["unexpected_keys"] or found["mismatched_keys"]:
        raise ValueError(
            f"it has tensors that do not fit ({naming.listing(sorted(map(str, odd)))})"
        )


def _splitting(file: Path) -> str | None:
    """Returns llama.cpp's name of how text is cut before its pairs are merged."""
    from gguf import GGUFReader  # an extra

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())
