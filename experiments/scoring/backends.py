"""Where candidates are scored if not in this process: hosts for `ServedModel`, by Hydra's name."""

import itertools
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import requests

from evaluators.engine.served import ServedModel
from evaluators.evaluator import ModelInfo
from merging.checkpoints.experts import ExpertPool


class CompletionsHost:
    """An OpenAI-compatible server of completions that loads LoRA adapters while it runs (vLLM).

    Args:
        model: the base's name at the server.
        lm: lm-eval's ``local-completions`` model for it.
    """

    failures = (requests.RequestException, ConnectionError, TimeoutError)

    def __init__(self, url: str, model: str, lm: Any, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._model = model
        self.lm = lm
        self._timeout_s = timeout_s
        self._loaded: str | None = None
        self._numbers = itertools.count()

    def use(self, adapter: Path | None) -> None:
        """Loads the adapter at the server and unloads the one before."""
        earlier, self._loaded = self._loaded, None
        if earlier is not None:
            self._post("unload_lora_adapter", {"lora_name": earlier})
        if adapter is None:
            self.lm.model = self._model
            return
        name = f"evomerge-{os.getpid()}-{next(self._numbers)}"
        self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(adapter.resolve())})
        self.lm.model = self._loaded = name

    def _post(self, verb: str, content: dict[str, str]) -> None:
        answer = requests.post(f"{self._url}/v1/{verb}", json=content, timeout=self._timeout_s)
        if not answer.ok:
            raise requests.HTTPError(f"{self._url}/v1/{verb}: {answer.status_code} {answer.text}")


class VllmHost:
    """vLLM in this process.

    Args:
        lm: lm-eval's ``vllm`` model, built with ``enable_lora``.
    """

    failures = (RuntimeError, ValueError)

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self._numbers = itertools.count(1)

    def use(self, adapter: Path | None) -> None:
        """Has the next requests answered with this adapter."""
        from vllm.lora.request import LoRARequest

        number = next(self._numbers)
        self.lm.lora_request = (
            None if adapter is None else LoRARequest(f"evomerge-{number}", number, str(adapter))
        )


def completions(
    pool: ExpertPool,
    info: ModelInfo,
    *,
    url: str,
    served_as: str,
    tokenizer: str | None,
    adapters: str,
    rank: int,
    largest_error: float,
    batch_size: int,
    concurrent: int,
    timeout_s: float,
    retries: int,
) -> ServedModel:
    """Returns a model of an OpenAI-compatible server; see ``conf/backend/completions.yaml``."""
    if find_spec("tenacity") is None or find_spec("aiohttp") is None:
        raise ValueError("backend=completions needs the extra `api`: pip install 'evomerge[api]'")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    _check_tokens(pool)
    _check_served(url, served_as, timeout_s)
    lm = LocalCompletionsAPI(
        base_url=f"{url.rstrip('/')}/v1/completions",
        model=served_as,
        tokenizer=tokenizer or str(pool.base.path),
        tokenizer_backend="huggingface",
        batch_size=batch_size,
        num_concurrent=concurrent,
        timeout=timeout_s,
        max_retries=retries,
        max_length=info.max_length,
    )
    host = CompletionsHost(url, served_as, lm, timeout_s)
    return ServedModel(
        host, info, pool, rank=rank, largest_error=largest_error, folder=Path(adapters)
    )


def vllm(
    pool: ExpertPool,
    info: ModelInfo,
    *,
    adapters: str,
    rank: int,
    largest_error: float,
    served_dtype: str,
    gpu_memory_utilization: float,
    tensor_parallel_size: int,
) -> ServedModel:
    """Returns a model in vLLM, in this process; see ``conf/backend/vllm.yaml``."""
    if find_spec("vllm") is None:
        raise ValueError("backend=vllm needs vLLM: pip install vllm, on a CUDA machine")
    if pool.base.source.startswith("zoo:"):
        raise ValueError(
            f"backend=vllm reads the base's files itself: write those of {pool.base.source} with "
            "`evomerge zoo open`, and name their directory"
        )
    _check_tokens(pool)
    from lm_eval.models.vllm_causallms import VLLM

    lm = VLLM(
        pretrained=pool.base.source,
        dtype=served_dtype,
        gpu_memory_utilization=gpu_memory_utilization,
        tensor_parallel_size=tensor_parallel_size,
        max_length=info.max_length,
        enable_lora=True,
        max_lora_rank=rank,
    )
    return ServedModel(
        VllmHost(lm), info, pool, rank=rank, largest_error=largest_error, folder=Path(adapters)
    )


def _check_tokens(pool: ExpertPool) -> None:
    if pool.base.rows is not None:
        raise ValueError(
            "vocabulary=union gives the base other tokens than another program reads from its "
            "files: use backend=resident, or vocabulary=base"
        )


def _check_served(url: str, served_as: str, timeout_s: float) -> None:
    try:
        answer = requests.get(f"{url.rstrip('/')}/v1/models", timeout=timeout_s)
        answer.raise_for_status()
        known = [model["id"] for model in answer.json()["data"]]
    except (requests.RequestException, ValueError, KeyError) as error:
        raise ValueError(
            f"backend.url={url}: no OpenAI-compatible server answers there ({error}): start one, "
            "or use backend=resident"
        ) from error
    if served_as not in known:
        names = ", ".join(known) or "nothing"
        raise ValueError(
            f"backend.served_as={served_as}: the server at {url} serves {names}: name one of them"
        )
