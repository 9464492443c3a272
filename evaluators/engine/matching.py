"""Runs `Match` requests: every input is embedded once per candidate, then compared."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from evaluators.engine.batching import EngineRun, pack
from evaluators.engine.inputs import Inputs, close, cost, shapes, stacked
from evaluators.engine.resident import Resident
from evaluators.requests import Match, Matched
from evaluators.sentences import SentenceModules

_log = logging.getLogger(__name__)
_FEW = 3  # rows that are compared with what the model itself gives


@dataclass(frozen=True, eq=False)
class _Batch:
    inputs: dict[str, Tensor]
    cost: int  # tokens of the longest row
    rows: tuple[int, ...]  # of all embedded inputs
    modules: SentenceModules | None


class MatchJob:
    """All comparisons of a run, as padded tensors on the device; equal objects are embedded once.

    Embeddings are the model's own of images and texts where it has both, else its last hidden
    states behind sentence-transformers' modules.
    """

    def __init__(
        self, requests: Sequence[tuple[int, Match]], resident: Resident, *, batch_tokens: int
    ) -> None:
        for _, request in requests:
            if request.modules is None and not hasattr(resident.module, "get_image_features"):
                raise ValueError(
                    f"{type(resident.module).__name__} has no embeddings of images and texts: "
                    "zero-shot classification needs a model of the kind of CLIP or SigLIP"
                )
        self._requests = requests
        self._rows: dict[int, int] = {}  # id of the inputs -> row
        distinct: list[tuple[Inputs, SentenceModules | None]] = []
        for _, request in requests:
            for inputs in (request.inputs, *request.gallery.inputs):
                if id(inputs) not in self._rows:
                    self._rows[id(inputs)] = len(distinct)
                    distinct.append((inputs, request.modules))
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, (inputs, modules) in enumerate(distinct):
            groups.setdefault((id(modules), shapes(inputs)), []).append(row)
        self._batches: list[_Batch] = []
        for rows in groups.values():
            modules = distinct[rows[0]][1]
            ordered = sorted(rows, key=lambda row: -cost(distinct[row][0]))
            given = [distinct[row][0] for row in ordered]
            tokens = batch_tokens if _may_pad(given, modules, resident) else 1
            for batch in pack(ordered, list(map(cost, given)), tokens):
                held = [distinct[row][0] for row in batch]
                most = max(map(cost, held))
                together = stacked(held, resident.module.config, resident)
                self._batches.append(_Batch(together, most, tuple(batch), modules))
        self.most_rows = max(len(batch.rows) for batch in self._batches)
        self._checked = all(request.modules is not None for _, request in requests)

    def run(self, run: EngineRun) -> None:
        """Fills in a `Matched` for every request; see `Job`."""
        if not self._checked:
            self._checked = _check_logits(run.resident, self._requests[0][1])
        vectors: dict[int, dict[int, Tensor]] = {}  # candidate -> row -> its vector
        for batch in self._batches:
            count = len(batch.rows)
            for part in _parts(run, batch):
                run.deadline.check()
                inputs = {k: torch.cat([one] * len(part)) for k, one in batch.inputs.items()}
                found = _embedded(run.resident.module, inputs, batch.modules)
                for candidate, own in zip(part, torch.split(found, count), strict=True):
                    rows = vectors.setdefault(candidate, {})
                    rows.update(zip(batch.rows, own, strict=True))
        for candidate, own_rows in vectors.items():
            if not all(request.modules for _, request in self._requests):
                run.population.write(candidate)  # for the scale of its logits
            self._compare(run, candidate, own_rows)

    def _compare(self, run: EngineRun, candidate: int, vectors: Mapping[int, Tensor]) -> None:
        galleries: dict[int, Tensor] = {}
        for index, request in self._requests:
            gallery = galleries.get(id(request.gallery))
            if gallery is None:
                rows = [vectors[self._rows[id(one)]] for one in request.gallery.inputs]
                gallery = _means(torch.stack(rows), request.gallery.sizes)
                galleries[id(request.gallery)] = gallery
            vector = vectors[self._rows[id(request.inputs)]].unsqueeze(0)
            found = _similarities(run.resident.module, vector, gallery, request.modules)[0]
            if not bool(found.isfinite().all()):
                run.answers.fail(
                    candidate,
                    "an embedding is not finite: the candidate's weights give NaN or infinite "
                    "values",
                )
            run.answers.put(candidate, index, Matched(found.cpu().double().numpy()))


def _parts(run: EngineRun, batch: _Batch) -> Iterator[range]:
    """Yields candidates that go through the model together, once they are in it."""
    if batch.modules is None:  # layers of images see patches, and the scale is a parameter
        for candidate in range(run.population.size):
            run.population.write(candidate)
            yield range(candidate, candidate + 1)
        return
    count = len(batch.rows)
    for part in run.population.parts(count * batch.cost):
        run.population.choose(part, count)
        yield part


def _embedded(
    module: Any, inputs: Mapping[str, Tensor], modules: SentenceModules | None
) -> Tensor:
    """Returns ``(rows, dimensions)`` float32."""
    if modules is None:
        embed = module.get_image_features if "pixel_values" in inputs else module.get_text_features
        output = embed(**inputs)
        vectors: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return vectors.float()
    encoder_decoder = getattr(module.config, "is_encoder_decoder", False)
    encoder = module.get_encoder() if encoder_decoder else module.base_model
    return modules.vectors(encoder(**inputs).last_hidden_state, inputs["attention_mask"])


def _means(vectors: Tensor, sizes: Sequence[int] | None) -> Tensor:
    """Returns the mean direction of every group of `vectors`; where each is one, itself."""
    if sizes is None:
        return vectors
    directions = torch.split(normalize(vectors, dim=-1), list(sizes))
    return torch.stack([group.mean(dim=0) for group in directions])


def _similarities(
    module: Any, vectors: Tensor, gallery: Tensor, modules: SentenceModules | None
) -> Tensor:
    """Returns ``(rows, entries)``; of images and texts the logits of the model."""
    if modules is not None:
        return modules.similarities(vectors, gallery)
    logits = normalize(vectors, dim=-1) @ normalize(gallery, dim=-1).T
    scale, temperature = getattr(module, "logit_scale", None), getattr(module, "temperature", None)
    if scale is not None:
        logits = logits * scale.float().exp()
    elif temperature is not None:
        logits = logits / temperature.float()
    bias = getattr(module, "logit_bias", None)
    return logits if bias is None else logits + bias.float()


def _check_logits(resident: Resident, request: Match) -> bool:
    """Returns whether the model has told that its own logits are these; refuses one of others."""
    module, config = resident.module, resident.module.config
    image = stacked([request.inputs], config, resident)
    texts = stacked(request.gallery.inputs[:_FEW], config, resident)
    own = module(**texts, **image).logits_per_image.float()
    found = _similarities(
        module, _embedded(module, image, None), _embedded(module, texts, None), None
    )
    if not bool(own.isfinite().all()):
        return False
    if not close(found, own, resident.dtype):
        raise ValueError(
            f"{type(module).__name__} compares images and texts in a way of its own, which is "
            "not known here: choose a model of the kind of CLIP or SigLIP"
        )
    return True


def _may_pad(given: Sequence[Inputs], modules: SentenceModules | None, resident: Resident) -> bool:
    """Whether, by the base, the shortest row has the same vector beside the longest.

    Args:
        given: rows, the longest first.
    """
    config, most = resident.module.config, cost(given[0])
    if modules is None or most == cost(given[-1]):
        return True
    key = (modules, most, cost(given[-1]))
    if key in resident.padded:
        return resident.padded[key]
    with resident.without_candidate(), torch.inference_mode():
        both = stacked([given[0], given[-1]], config, resident)
        together = _embedded(resident.module, both, modules)[1:]
        one = _embedded(resident.module, stacked([given[-1]], config, resident), modules)
    alike = resident.padded[key] = close(together, one, resident.dtype)
    if not alike:
        _log.warning(
            "padded rows of %s differ from rows alone: embedding one by one",
            type(resident.module).__name__,
        )
    return alike
