"""What sentence-transformers puts behind an encoder: pooling, dense layers, a similarity."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from merging.checkpoints.weight_files import WeightFiles

_KNOWN = ("Transformer", "Pooling", "Dense", "Normalize")


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def _root_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    return _mean(hidden, mask * places[None, :, None])  # later tokens count for more


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(hidden.shape[1], device=hidden.device)
    last = (mask[..., 0] * places).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


_POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda hidden, _: hidden[:, 0],  # rows are padded on the right
    "lasttoken": _last,
    "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -torch.inf).amax(1),
    "mean": _mean,
    "mean_sqrt_len_tokens": _root_mean,
    "weightedmean": _weighted_mean,
}
_OLD_NAMES = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "weightedmean": "weightedmean_tokens",
}

_SIMILARITIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a, b: normalize(a, dim=-1) @ normalize(b, dim=-1).T,
    "dot": lambda a, b: a @ b.T,
    "euclidean": lambda a, b: -torch.cdist(a, b),
    "manhattan": lambda a, b: -torch.cdist(a, b, p=1),
}


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer behind the pooling; the base's, as it is no part of what is merged.

    Args:
        weight: ``(out, in)`` float32; bias: ``(out,)`` float32, or None.
    """

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module

    def __call__(self, vectors: Tensor) -> Tensor:
        """Returns ``(rows, out)`` for ``(rows, in)``."""
        weight, bias = self.weight.to(vectors), self.bias
        linear = nn.functional.linear(vectors, weight, None if bias is None else bias.to(vectors))
        result: Tensor = self.activation(linear)
        return result


@dataclass(frozen=True, eq=False)
class SentenceModules:
    """How hidden states become one vector, and vectors a similarity.

    Args:
        poolings: names of poolings, whose vectors stand one behind the other.
        layers: what follows, in order; ``"normalize"`` gives vectors length 1.
        similarity: cosine, dot, euclidean or manhattan.
        max_length: most tokens of a text; None: as many as the model takes.
        lower_case: whether texts are read in lower case.
        prompts: name to what stands in front of texts of that role.
        default_prompt: name of the one of texts without a role.
        prompt_pooled: whether its tokens go into the pooling.
    """

    poolings: tuple[str, ...] = ("mean",)
    layers: tuple[Dense | str, ...] = ()
    similarity: str = "cosine"
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] | None = None
    default_prompt: str | None = None
    prompt_pooled: bool = True

    @classmethod
    def read(cls, directory: Path) -> SentenceModules:
        """Returns what ``modules.json`` and its folders say; without it the mean of all tokens.

        Raises:
            ValueError: a kind of module, pooling, activation or similarity that is not known
                here.
        """
        listed: Any = _json(directory / "modules.json") or []
        poolings: tuple[str, ...] = ("mean",)
        layers: list[Dense | str] = []
        settings: dict[str, Any] = {}
        for entry in sorted(listed, key=lambda one: one["idx"]):
            kind, folder = entry["type"].rpartition(".")[2], directory / entry["path"]
            if kind == "Pooling":
                settings = _json(folder / "config.json")
                poolings = _poolings(settings, folder)
            elif kind == "Dense":
                layers.append(_dense(folder))
            elif kind == "Normalize":
                layers.append("normalize")
            elif kind != "Transformer":
                raise ValueError(
                    f"{directory / 'modules.json'} names a module {kind}, which is not known "
                    f"here: use a model of {', '.join(_KNOWN)}"
                )
        text = _json(directory / "sentence_bert_config.json")
        whole = _json(directory / "config_sentence_transformers.json")
        similarity = whole.get("similarity_fn_name") or "cosine"
        if similarity not in _SIMILARITIES:
            raise ValueError(
                f"{directory}: similarity {similarity!r} is none of {', '.join(_SIMILARITIES)}"
            )
        return cls(
            poolings,
            tuple(layers),
            similarity,
            text.get("max_seq_length"),
            bool(text.get("do_lower_case")),
            whole.get("prompts") or {},
            whole.get("default_prompt_name"),
            bool(settings.get("include_prompt", True)),
        )

    def prompt(self, *roles: str) -> str:
        """Returns what stands in front of a text: of the first of `roles` that has a prompt."""
        prompts = self.prompts or {}
        named = next((role for role in (*roles, self.default_prompt) if role in prompts), None)
        prompt = prompts[named] if named is not None else ""
        if prompt and not self.prompt_pooled:
            raise ValueError(
                f"prompt {prompt!r} would be pooled, which include_prompt of the pooling forbids: "
                "use a model that pools it"
            )
        return prompt

    def vectors(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Returns ``(rows, dimensions)`` float32.

        Args:
            hidden: ``(rows, tokens, hidden)`` last hidden states.
            mask: ``(rows, tokens)`` 0 where a row is padded, on its right.
        """
        hidden, mask = hidden.float(), mask.unsqueeze(-1)
        pooled = torch.cat([_POOLINGS[name](hidden, mask) for name in self.poolings], dim=-1)
        for layer in self.layers:
            pooled = layer(pooled) if isinstance(layer, Dense) else normalize(pooled, dim=-1)
        return pooled

    def similarities(self, vectors: Tensor, others: Tensor) -> Tensor:
        """Returns ``(rows, others)``, higher for closer ones."""
        return _SIMILARITIES[self.similarity](vectors, others)


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _poolings(settings: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    named = settings.get("pooling_mode")
    named = [named] if isinstance(named, str) else named
    if named is None:
        prefix = "pooling_mode_"
        found = [key.removeprefix(prefix) for key, value in settings.items() if value is True]
        old = {old: new for new, old in _OLD_NAMES.items()}
        named = [old.get(key, key) for key in found if f"{prefix}{key}" in settings]
    unknown: Sequence[str] = [name for name in named if name not in _POOLINGS]
    if unknown or not named:
        raise ValueError(
            f"{folder} pools by {unknown[0] if unknown else 'nothing'}, known are "
            f"{', '.join(_POOLINGS)}"
        )
    return tuple(name for name in _POOLINGS_IN_ORDER if name in named)


# sentence-transformers puts vectors one behind the other in this order
_POOLINGS_IN_ORDER = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def _dense(folder: Path) -> Dense:
    config, files = _json(folder / "config.json"), WeightFiles.find(folder)
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    kind: Any = getattr(nn.modules.activation, name, nn.Identity if name == "Identity" else None)
    if kind is None or not issubclass(kind, nn.Module):
        raise ValueError(f"{folder}: activation {name} is none of torch.nn's")
    bias = files["linear.bias"].float() if "linear.bias" in files else None
    return Dense(files["linear.weight"].float(), bias, kind())
