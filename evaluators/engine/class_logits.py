"""Runs `Classify` requests: inputs batched per head, through one shared encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluators.engine.batching import Answers, EngineRun, pack
from evaluators.engine.inputs import cost, shapes, stacked
from evaluators.engine.resident import Resident
from evaluators.requests import Classified, Classify


@dataclass(frozen=True, eq=False)
class _Batch:
    head: str
    inputs: dict[str, Tensor]
    cost: int  # tokens of the longest row
    requests: tuple[tuple[int, Classify], ...]  # each row's, and its index


class ClassLogitsJob:
    """All classification requests of a run, as padded tensors on the device."""

    def __init__(
        self, requests: Sequence[tuple[int, Classify]], resident: Resident, *, batch_tokens: int
    ) -> None:
        groups: dict[tuple[Any, ...], list[tuple[int, Classify]]] = {}
        for index, request in requests:
            if request.head not in resident.classifiers:
                raise ValueError(
                    f"no classification head {request.head!r}; this model has "
                    f"{', '.join(resident.classifiers) or 'none'}"
                )
            groups.setdefault((request.head, shapes(request.inputs)), []).append((index, request))
        self._batches: list[_Batch] = []
        for (head, _), group in groups.items():
            classifier = resident.classifiers[head]
            # without a padding token a decoder's head cannot find the ends of several rows
            tokens = batch_tokens if _can_pad(group[0][1].inputs, classifier) else 1
            ordered = sorted(group, key=lambda asked: -cost(asked[1].inputs))
            for batch in pack(ordered, [cost(one.inputs) for _, one in ordered], tokens):
                given = [request.inputs for _, request in batch]
                together = stacked(given, classifier.config, resident)
                most = max(map(cost, given))
                self._batches.append(_Batch(head, together, most, tuple(batch)))
        self.most_rows = max(len(batch.requests) for batch in self._batches)

    def run(self, run: EngineRun) -> None:
        """Fills in a `Classified` for every request; see `Job`."""
        for batch in self._batches:
            rows = len(batch.requests)
            for part in run.population.parts(rows * batch.cost):
                run.deadline.check()
                run.population.choose(part, rows)
                inputs = {k: _repeated(tensor, len(part)) for k, tensor in batch.inputs.items()}
                logits = _logits(run.resident.classifiers[batch.head](**inputs))
                split = logits.view(len(part), rows, *logits.shape[1:]).cpu().double().numpy()
                for candidate, own_logits in zip(part, split, strict=True):
                    _answer(batch, own_logits, candidate, run.answers)


def _logits(output: Any) -> Tensor:
    """Returns ``(rows, classes)``, of heads over tokens ``(rows, tokens, classes)``."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    logits: Tensor = output.logits
    return logits


def _answer(
    batch: _Batch, logits: npt.NDArray[np.float64], candidate: int, answers: Answers
) -> None:
    for (index, request), row in zip(batch.requests, logits, strict=True):
        own = row if request.positions is None else row[list(request.positions)]
        if not np.isfinite(own).all():
            answers.fail(
                candidate,
                f"head {batch.head!r} gives logits that are not finite: the candidate's weights "
                "give NaN or infinite values",
            )
        answers.put(candidate, index, Classified(own))


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return tensor if times == 1 else tensor.repeat(times, *[1] * (tensor.dim() - 1))


def _can_pad(inputs: Mapping[str, Tensor], classifier: Any) -> bool:
    return (
        "input_ids" not in inputs or getattr(classifier.config, "pad_token_id", None) is not None
    )
