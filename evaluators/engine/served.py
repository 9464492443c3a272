"""A model behind one of lm-eval's back ends: candidates travel as LoRA adapters."""

import contextlib
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lm_eval.api.instance import Instance

from evaluators.evaluator import ModelInfo
from evaluators.requests import (
    EvaluationError,
    Generate,
    Generated,
    Likelihood,
    Loglikelihood,
    Request,
    Response,
    TransientFailure,
)
from merging.checkpoints.experts import ExpertPool
from merging.saving.save_adapter import AdapterError, save_adapter
from merging.weights import CheckpointError, Weights


class Host(Protocol):
    """What serves the base and, one at a time, an adapter for it."""

    @property
    def lm(self) -> Any:
        """lm-eval's view of it, a ``TemplateLM``."""
        ...

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What its calls raise when it cannot be reached or refuses to answer."""
        ...

    def use(self, adapter: Path | None) -> None:
        """Answers with this adapter from now on, and forgets the one before; None: the base."""
        ...


class ServedModel:
    """Takes candidates and answers requests in the place of a `ResidentModel`.

    Args:
        host: serves the base of `pool`, a language model.
        rank: of the adapters that carry the candidates.
        largest_error: a candidate of which an adapter loses more than this (relative, in the
            Frobenius norm) is no candidate that was asked for, and fails.
        folder: where adapters are written, readable for the host under the same path.

    Raises:
        ValueError: the pool holds classifiers, or an option makes no sense.
    """

    def __init__(
        self,
        host: Host,
        info: ModelInfo,
        pool: ExpertPool,
        *,
        rank: int,
        largest_error: float,
        folder: Path,
    ) -> None:
        if info.heads or not info.causal:
            raise ValueError(
                "ServedModel answers for causal language models alone: use ResidentModel"
            )
        if rank < 1 or not largest_error > 0:
            raise ValueError(
                f"ServedModel: rank must be at least 1 and largest_error above 0, got {rank} and "
                f"{largest_error}"
            )
        self._host = host
        self._info = info
        self._pool = pool
        self._rank = rank
        self._largest_error = largest_error
        self._folder = folder
        self._latest: Path | None = None
        self._count = 0

    def write(self, weights: Weights) -> None:
        """Has the candidate served, as an adapter.

        Raises:
            EvaluationError: no adapter carries it.
            TransientFailure: the host cannot be reached or refuses, or the adapter not written.
        """
        adapter = self._adapter(weights)
        try:
            self._host.use(adapter)
        except self._host.failures as error:
            raise TransientFailure(
                f"the served model does not take the adapter: {error}"
            ) from error
        finally:
            if self._latest is not None:
                shutil.rmtree(self._latest, ignore_errors=True)
            self._latest = adapter

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Returns the answers to `requests`, in order.

        Contexts are cut on the left as the back end cuts them, which leaves room for a token that
        the resident engine does not need.

        Raises:
            TransientFailure: the host cannot be reached, refuses, or answers without numbers.
            ValueError: a request that only a resident model can answer.
        """
        answers: dict[int, Response] = {}
        likelihoods = [(i, r) for i, r in enumerate(requests) if isinstance(r, Loglikelihood)]
        generations = [(i, r) for i, r in enumerate(requests) if isinstance(r, Generate)]
        if any(getattr(request, "media", None) is not None for request in requests):
            raise ValueError("ServedModel is asked about tokens alone: use ResidentModel")
        if len(likelihoods) + len(generations) < len(requests):
            odd = next(r for r in requests if not isinstance(r, Loglikelihood | Generate))
            raise ValueError(
                f"ServedModel answers no {type(odd).__name__} request: use ResidentModel"
            )
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # bars that cannot be turned off
                answers |= self._likelihoods(likelihoods)
                answers |= self._generations(generations)
        except self._host.failures as error:
            raise TransientFailure(f"the served model does not answer: {error}") from error
        return [answers[i] for i in range(len(requests))]

    def _adapter(self, weights: Weights) -> Path | None:
        """Returns the folder of the candidate's adapter; None: it is the base."""
        pool = self._pool
        if all(torch.equal(weights[n].float(), pool.base_tensor(n).float()) for n in weights):
            return None
        out = self._folder / f"candidate-{self._count}"
        self._count += 1
        shutil.rmtree(out, ignore_errors=True)
        try:
            saved = save_adapter(pool, weights, out, rank=self._rank)
        except AdapterError as error:
            raise EvaluationError(f"the candidate cannot be served: {error}") from error
        except CheckpointError as error:  # such as a full disk
            raise TransientFailure(f"the adapter cannot be written: {error}") from error
        if saved.error > self._largest_error:
            shutil.rmtree(out)
            raise EvaluationError(
                f"an adapter of rank {self._rank} loses {saved.error:.2g} of the candidate, "
                f"largest_error is {self._largest_error:g}: raise rank"
            )
        return out

    def _likelihoods(self, requests: Sequence[tuple[int, Loglikelihood]]) -> dict[int, Response]:
        if not requests:
            return {}
        # The key names an entry of lm-eval's cache, which forgets that weights change: None.
        pairs = [(None, list(r.context), list(r.continuation)) for _, r in requests]
        answers = self._host.lm._loglikelihood_tokens(pairs)
        return {
            index: Likelihood(float(total), bool(greedy))
            for (index, _), (total, greedy) in zip(requests, answers, strict=True)
        }

    def _generations(self, requests: Sequence[tuple[int, Generate]]) -> dict[int, Response]:
        if not requests:
            return {}
        instances = []
        for number, (_, request) in enumerate(requests):
            longest = self._info.max_length - request.max_new_tokens
            prompt = self._info.tokenizer.decode(request.prompt[-longest:])
            instances.append(Instance("generate_until", {}, (prompt, _options(request)), number))
        texts = self._host.lm.generate_until(instances)
        return {index: Generated(text) for (index, _), text in zip(requests, texts, strict=True)}


def _options(request: Generate) -> dict[str, Any]:
    options: dict[str, Any] = {
        "until": [text for text in request.stop if text],
        "max_gen_toks": request.max_new_tokens,
        "temperature": request.temperature,
        "do_sample": request.temperature > 0,
    }
    if request.temperature > 0:
        options |= {"top_p": request.top_p, "seed": request.seed}
    return options | dict(request.options or ())
