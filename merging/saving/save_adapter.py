"""A merged model as a LoRA adapter of chosen rank: what peft loads beside the unchanged base."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.naming import listing
from merging.privacy.ledger import Ledger
from merging.rules.spectral import low_rank_svd
from merging.saving.save import ingredients, staged, write_ledger
from merging.weights import CheckpointError, Weights

_PREFIX = "base_model.model."
_REMEDY = "save the full model instead, with save_model"


class AdapterError(CheckpointError):
    """A merge that no adapter can hold, whatever there is room for."""


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter keeps of a merged model.

    Args:
        error: ``|D - B A| / |D|`` in the Frobenius norm over all matrices D = merged - base that
            it holds as factors; float32 rounding where the rank suffices.
        worst: the matrix with the largest error of its own.
        whole: layers that it holds whole, as peft's ``modules_to_save``.
    """

    rank: int
    error: float
    worst: str
    worst_error: float
    whole: tuple[str, ...]

    def __str__(self) -> str:
        kept = f"; {len(self.whole)} layers kept whole" if self.whole else ""
        return (
            f"adapter of rank {self.rank}: relative error {self.error:.2g}, "
            f"{self.worst_error:.2g} at most ({self.worst}){kept}"
        )


def save_adapter(
    pool: ExpertPool, weights: Weights, out: Path, *, rank: int, ledger: Ledger | None = None
) -> SavedAdapter:
    """Writes merged minus base as a PEFT LoRA adapter: the best of its rank, matrix by matrix.

    The weight of a linear or embedding layer is held as factors by its leading singular triplets
    (Eckart & Young 1936), scale 1. What is no such weight (norms, biases) keeps its layer whole,
    weight and bias, under ``modules_to_save``. Layers that equal the base's are left out.
    Classifiers: the adapter is the shared encoder's, for transformers' AutoModel.

    Args:
        weights: every tensor of ``pool.names``, best in float32: each is read once or twice.
        out: directory to create; its parents are created too.
        rank: of every factor; smaller matrices are padded with zeros.
        ledger: what its private data cost, for ``privacy.json``; None: no such file, so that it
            counts as not private.

    Raises:
        AdapterError: a changed tensor is tied or belongs to no single layer; the merge changes no
            matrix, or has another depth.
        CheckpointError: `out` holds something or cannot be written.
        ValueError: the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank of the adapter must be at least 1, got {rank}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists: choose another directory for the adapter")
    _check_names(pool, weights)
    draft = _Draft(pool, rank)
    matrices = dict.fromkeys(name for name in pool.names if _is_matrix(pool, name))
    for name in pool.names:
        if name not in matrices and _changes(pool, name, weights[name]):
            draft.keep(_layer(name), weights)
    for name in matrices:
        if _layer(name) not in draft.whole:
            draft.factorise(name, weights[name])
    saved = draft.saved()
    with staged(out) as directory:
        save_file(
            draft.tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"}
        )
        text = json.dumps(draft.config(), indent=2, sort_keys=True) + "\n"
        (directory / "adapter_config.json").write_text(text, encoding="utf-8")
        (directory / "README.md").write_text(_card(pool, saved), encoding="utf-8")
        if ledger is not None:
            write_ledger(directory, ledger)
    return saved


def check_adapter(pool: ExpertPool, weights: Weights) -> None:
    """Refuses experts whose merges no adapter can hold, before anything is merged.

    Of `weights`, a merge of the kind that is to be saved, only names are read.

    Raises:
        AdapterError: the experts change a tensor that is tied or belongs to no single layer,
            or the merge has other tensors than the experts change.
    """
    _check_names(pool, weights)
    for name in pool.names:
        reason = _refusal(pool, name)
        if reason and bool(pool.deltas(name).any()):
            raise AdapterError(f"no adapter can hold {name}, {reason}: {_REMEDY}")


def _check_names(pool: ExpertPool, weights: Weights) -> None:
    if odd := sorted(set(weights) ^ set(pool.names)):
        raise AdapterError(
            f"the merged model has other tensors than the experts change ({listing(odd)}), which "
            f"no adapter of {pool.base.source} can hold: {_REMEDY}"
        )


class _Draft:
    """The adapter's tensors as they are gathered, and what the factors leave out."""

    def __init__(self, pool: ExpertPool, rank: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.targets: list[str] = []
        self.whole: list[str] = []
        self._pool, self._rank = pool, rank
        self._squares: dict[str, tuple[float, float]] = {}  # of what is left out, and of all

    def keep(self, layer: str, weights: Weights) -> None:
        """Takes a layer whole, every parameter in its dtype in the base."""
        if layer in self.whole:
            return
        self.whole.append(layer)
        base = self._pool.base
        for parameter in base.skeleton.get_submodule(layer).state_dict():
            name = f"{layer}.{parameter}"
            given = weights[name] if name in self._pool.names else base[name]
            self.tensors[_PREFIX + name] = given.to("cpu", base.dtype(name)).contiguous()

    def factorise(self, name: str, merged: Tensor) -> None:
        """Takes the leading triplets of a matrix; nothing where it equals the base's."""
        delta = merged.float() - self._pool.base_tensor(name).to(merged.device).float()
        if not delta.any():
            return
        layer, kind = _layer(name), _owner(self._pool, name)
        matrix = delta if isinstance(kind, nn.Linear) else delta.T  # (out, in)
        left, values, right = low_rank_svd(matrix, self._rank)
        root = values.sqrt()
        b = matrix.new_zeros((len(matrix), self._rank))
        a = matrix.new_zeros((self._rank, matrix.shape[1]))
        b[:, : len(root)], a[: len(root)] = left * root, root[:, None] * right
        rest = matrix.double() - b.double() @ a.double()
        self._squares[name] = float(rest.square().sum()), float(delta.double().square().sum())
        self.targets.append(layer)
        form = "{}lora_embedding_{}" if isinstance(kind, nn.Embedding) else "{}lora_{}.weight"
        for side, factor in (("A", a), ("B", b)):
            self.tensors[form.format(f"{_PREFIX}{layer}.", side)] = factor.cpu().contiguous()

    def saved(self) -> SavedAdapter:
        """Returns what the adapter keeps; raises AdapterError where it has no factors."""
        if not self._squares:
            raise AdapterError(
                "the merged model changes no matrix of the base, so there is nothing for an "
                f"adapter of rank {self._rank} to hold: {_REMEDY}"
            )
        errors = {name: math.sqrt(rest / all_) for name, (rest, all_) in self._squares.items()}
        worst = max(errors, key=errors.__getitem__)
        rest, total = (math.fsum(column) for column in zip(*self._squares.values(), strict=True))
        return SavedAdapter(
            self._rank, math.sqrt(rest / total), worst, errors[worst], tuple(self.whole)
        )

    def config(self) -> Mapping[str, object]:
        """Returns adapter_config.json."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        from transformers.pytorch_utils import Conv1D

        base = self._pool.base
        causal = base.kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        layers = map(base.skeleton.get_submodule, self.targets)
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if causal else None,
            "base_model_name_or_path": base.source,
            "r": self._rank,
            "lora_alpha": self._rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": self.targets,
            "modules_to_save": self.whole or None,
            "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in layers),
            "init_lora_weights": True,
            "inference_mode": True,
        }


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _owner(pool: ExpertPool, name: str) -> nn.Module:
    return pool.base.skeleton.get_submodule(_layer(name))


def _is_matrix(pool: ExpertPool, name: str) -> bool:
    """Whether factors can hold the tensor."""
    from transformers.pytorch_utils import Conv1D

    kinds = nn.Linear | Conv1D | nn.Embedding
    fits = name.endswith(".weight") and isinstance(_owner(pool, name), kinds)
    return fits and _refusal(pool, name) is None


def _refusal(pool: ExpertPool, name: str) -> str | None:
    """Returns why no adapter can hold a change of this tensor; None: one can."""
    aliases = pool.base.aliases
    if name in aliases or name in aliases.values():
        return "which is tied to another parameter"
    if any(True for _ in _owner(pool, name).children()):
        return "which belongs to a module with layers of its own"
    return None


def _changes(pool: ExpertPool, name: str, merged: Tensor) -> bool:
    """Whether a tensor that factors cannot hold differs from the base's in the base's dtype."""
    base = pool.base_tensor(name).to(merged.device)
    if torch.equal(merged.to(base.dtype), base):
        return False
    if reason := _refusal(pool, name):
        raise AdapterError(f"no adapter can hold {name}, {reason}: {_REMEDY}")
    return True


def _card(pool: ExpertPool, saved: SavedAdapter) -> str:
    whole = "".join(f"\n- {layer}" for layer in saved.whole)
    return (
        "---\nlibrary_name: peft\ntags:\n- merge\n- lora\n---\n"
        f"# Merged model as an adapter\n\n{ingredients(pool)}\n\n"
        f"Best approximation of rank {saved.rank} to merged minus base, matrix by matrix: "
        f"relative error {saved.error:.3g} (Frobenius), {saved.worst_error:.3g} at most "
        f"({saved.worst}).\n" + (f"\nKept whole:\n{whole}\n" if whole else "")
    )
