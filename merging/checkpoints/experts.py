"""A base and the experts fine-tuned from it, as deltas of one tensor at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from merging.checkpoints import classifiers, compatibility
from merging.checkpoints.adapters import Adapter
from merging.checkpoints.architecture import read_config
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.expert import CheckpointExpert, Expert, held, task_vector
from merging.checkpoints.hashing import begin_sha256, known_finite, remember_finite
from merging.checkpoints.outlines import Described
from merging.checkpoints.sources import resolve
from merging.checkpoints.streamed import StreamedWeights
from merging.checkpoints.vocabulary import TokenOwner, Vocabulary
from merging.finite import finite
from merging.rules.cache import (
    LARGE,
    LARGE_ONCE,
    ExpertTensor,
    ModelMagnitudes,
    ParameterStack,
    TensorCache,
)
from merging.weight_names import find_weights, is_adapter
from merging.weights import CheckpointError, LazyWeights, Weights

logger = logging.getLogger(__name__)

CACHE_BYTES = 4 * 2**30
"""4 GiB: all of TIES on three experts of 350 million parameters."""


@dataclass(frozen=True, eq=False)
class ExpertPool:
    """Base and experts; reads one tensor at a time until `resident` holds them on a device.

    Language models are merged by the names of their ``state_dict``. Classifiers share what
    transformers' AutoModel keeps of them, so `base` is opened as that encoder, `names` are the
    encoder's (``encoder.layer.0...``, not ``bert.encoder.layer.0...``), and each expert keeps its
    own head.

    Attributes:
        base: the base's checkpoint; its ``module()`` has the tensors of `names`.
        names: tensors that are merged, in the module's order: float; present in all; where all
            experts are adapters, touched by one of them.
        heads: experts that carry a classification head of their own; all of them, or none.
        device: where `base_tensor` and `deltas` put their results.
        vocabulary: the rule by which tokens were brought together, and the hash of their files.
    """

    base: Checkpoint
    experts: Mapping[str, Expert]
    names: tuple[str, ...]
    heads: tuple[str, ...]
    device: torch.device
    _base_weights: Weights
    _deltas: dict[str, Tensor] | None = None
    _all: ExpertPool | None = None
    _cache: TensorCache | None = None
    _stacks: dict[str, ParameterStack] | None = None
    vocabulary: tuple[str, str] | None = None

    @classmethod
    def open(
        cls,
        base: str,
        experts: Mapping[str, str],
        *,
        base_revision: str | None = None,
        trust_remote_code: bool = False,
        vocabulary: str = "refuse",
    ) -> ExpertPool:
        """Returns the pool after all checks that need no weights; `check_finite` reads them.

        Args:
            base: directory or Hugging Face id.
            experts: display name -> directory or id of a checkpoint or a PEFT adapter.
            base_revision: branch, tag or commit of the base's id.
            trust_remote_code: as for `Checkpoint.open`.
            vocabulary: what becomes of tokens that differ: ``refuse``, or as in `Vocabulary`.

        Raises:
            CheckpointError: no experts; one that is missing, broken, or does not fit the base.
        """
        compatibility.check_expert_names(list(experts))
        paths = {name: resolve(source) for name, source in experts.items()}
        _begin_hashing(paths.values())
        full = {
            name: Described.read(path, trust_remote_code=trust_remote_code)
            for name, path in paths.items()
            if not is_adapter(path)
        }
        heads = tuple(name for name, described in full.items() if described.is_classifier)
        compatibility.check_same_kind(list(experts), heads)
        place = resolve(base, base_revision)
        _begin_hashing([place])
        common = None
        if vocabulary != "refuse":
            config_in = partial(read_config, trust_remote_code=trust_remote_code)
            members = {
                name: TokenOwner.of(experts[name], paths[name], config_in(paths[name]))
                for name in full
            }
            own = config_in(place)
            of_base = TokenOwner.of(base, place, own, encoder=bool(heads))
            common = Vocabulary.over(vocabulary, of_base, members)
        root = Checkpoint.open(
            base,
            revision=base_revision,
            trust_remote_code=trust_remote_code,
            encoder=bool(heads),
            rows=None if common is None else common.base,
        )
        moved = {} if common is None else common.experts
        opened: dict[str, Expert] = {}
        for name, source in experts.items():
            if name in full:
                expert = Checkpoint.open(
                    source, trust_remote_code=trust_remote_code, rows=moved.get(name)
                )
                compatibility.check_config(root, name, expert)
                compatibility.check_tensors(root, name, expert)
                weights = classifiers.EncoderWeights(expert) if heads else expert
                opened[name] = CheckpointExpert(expert, weights)
            else:
                opened[name] = Adapter.open(source, paths[name], root)
            compatibility.warn_of_inputs(root, name, source, paths[name], moved=name in moved)
        encoders = {name: expert.weights for name, expert in _checkpoints(opened).items()}
        compatibility.check_poolers(root, encoders if heads else {})
        names = _merged_names(root, opened)
        tokens = None if common is None else (common.rule, common.sha256)
        device = torch.device("cpu")
        return cls(root, opened, names, heads, device, root, vocabulary=tokens)

    @property
    def expert_names(self) -> tuple[str, ...]:
        """Display names, in the user's order."""
        return tuple(self.experts)

    @property
    def identities(self) -> tuple[str, ...]:
        """Content sha256 of each expert, in the order of `expert_names`."""
        return tuple(expert.sha256 for expert in self.experts.values())

    @property
    def sources(self) -> Mapping[str, str]:
        """Display name -> as the user named it."""
        return {name: expert.source for name, expert in self.experts.items()}

    @property
    def reading_bytes(self) -> int:
        """About how many bytes `check_finite` hashes and reads."""
        adapters = [e for e in self.experts.values() if not isinstance(e, CheckpointExpert)]
        read = sum(tensor.nbytes for adapter in adapters for _, tensor in adapter.stored())
        return read + 2 * sum(model.file_bytes for model in self._models().values())

    def _models(self) -> dict[str, Checkpoint]:
        """Returns base and experts that are checkpoints, by what messages call them."""
        experts = {
            f"expert {name!r} ({expert.source})": expert.checkpoint
            for name, expert in _checkpoints(self.experts).items()
        }
        return {f"base {self.base.source}": self.base, **experts}

    def check_finite(self, on_bytes: Callable[[int], object] = lambda size: None) -> None:
        """Reads every tensor; raises CheckpointError, naming it, at NaN or infinity.

        Of weights in a zoo it is known, of others it is remembered with their hash.

        Args:
            on_bytes: called, from several threads, with the size of what was hashed or read.
        """
        models = self._models()
        with ThreadPoolExecutor(torch.get_num_threads()) as each:
            list(each.map(lambda model: model.hash(on_bytes), models.values()))
        for owner, model in models.items():
            _check_finite(owner, model, on_bytes)
        for name, expert in self.experts.items():
            if not isinstance(expert, CheckpointExpert):
                _refuse_nonfinite(f"expert {name!r} ({expert.source})", expert.stored(), on_bytes)

    def base_tensor(self, name: str) -> Tensor:
        """Returns the base's tensor in its own dtype on `device`; not to be changed."""
        return self._base_weights[name].to(self.device)

    def base_weights(self) -> Weights:
        """Returns the base's own tensors by `names`."""
        return _BaseWeights(self)

    def deltas(self, name: str) -> Tensor:
        """Returns expert minus base for every expert, ``(experts, *shape)`` float32 on `device`.

        A LoRA expert's is the exact product B @ A * scale, computed in float64, rounded once.
        Not to be changed.
        """
        if self._deltas is not None and name in self._deltas:
            return self._deltas[name]
        if self._all is not None and self._all._deltas is not None:
            indices = [self._all.expert_names.index(expert) for expert in self.experts]
            return self._all.deltas(name)[indices]
        base = self.base_tensor(name).float()
        deltas = torch.empty(
            (len(self.experts), *base.shape), dtype=torch.float32, device=self.device
        )
        for delta, expert in zip(deltas, self.experts.values(), strict=True):
            expert.fill(name, base, delta)
        if self._deltas is not None:
            self._deltas[name] = deltas
        return deltas

    def tensors(self, name: str) -> ParameterStack:
        """Returns the parameter of base and experts, each as it is held, for merging in one pass.

        Adapters have no tensor of their own: what they add is computed, and kept if there is room.
        """
        if self._stacks is not None and name in self._stacks:
            return self._stacks[name]
        base = self.base_tensor(name)
        experts = self.experts.values()
        tensors = tuple(self._expert_tensor(name, base, expert) for expert in experts)
        stack = ParameterStack(name, base, tensors, torch.float32, self._large)
        if self._stacks is not None:
            self._stacks[name] = stack
        return stack

    @cached_property
    def _large(self) -> bool:
        least = LARGE_ONCE if self._cache is None else LARGE  # nothing is held for one merge
        return any(self.base.shape(name).numel() >= least for name in self.names)

    @cached_property
    def _whole(self) -> dict[str, ModelMagnitudes]:
        """The experts' whole task vectors by their identity."""
        given = self._base_weights, self.names, self.device  # not the pool: that would be a cycle
        experts = {expert.sha256: expert for expert in self.experts.values()}
        return {
            identity: ModelMagnitudes(identity, partial(task_vector, expert, *given), self._cache)
            for identity, expert in experts.items()
        }

    def _expert_tensor(self, name: str, base: Tensor, expert: Expert) -> ExpertTensor:
        whole = (self._all or self)._whole[expert.sha256]
        shared = base, torch.float32, self._cache, whole
        if isinstance(expert, CheckpointExpert):
            own = expert.tensor(name, base)
            return ExpertTensor(name, expert.sha256, own, True, *shared)

        def delta() -> Tensor:
            out = torch.empty(base.shape, dtype=torch.float32, device=self.device)
            expert.fill(name, base.float(), out)
            return out

        key = (name, expert.sha256, "delta")
        kept = self._cache.get(key, 4 * base.numel(), delta) if self._cache else None
        stored = delta() if kept is None else kept
        return ExpertTensor(name, expert.sha256, stored, False, *shared)

    def cached(self, name: str, kind: str, compute: Callable[[], float]) -> float:
        """Returns a number that follows from a parameter of base and experts.

        Args:
            kind: tells it from other such numbers.
            compute: returns it; called once if the pool is held in memory.
        """
        key = (name, self.identities, kind)
        found = None if self._cache is None else self._cache.get(key, 0, compute)
        return compute() if found is None else found

    def expert_weights(self, expert: str) -> Weights:
        """Returns an expert's own tensors by `names`; raises CheckpointError for no expert."""
        compatibility.check_known([expert], self.expert_names)
        return _ExpertWeights(self, self.experts[expert])

    @property
    def in_files(self) -> bool:
        """Whether the base's weights, and so the experts', are read from their files."""
        return self._base_weights is self.base

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept because no candidate changes it."""
        return 0 if self._cache is None else self._cache.held_bytes

    def reading(self) -> ExpertPool:
        """Returns the same pool for what is merged once: it reads what is kept, and keeps no more.

        What one merge sorts or draws is of no use to the next, unless that is of the same method.
        """
        cache = None if self._cache is None else self._cache.reading()
        return replace(self, _cache=cache, _stacks=None)

    def forget(self) -> None:
        """Lets go of what is kept: it is computed anew where it is needed again."""
        if self._cache is not None:
            self._cache.clear()

    def select(self, experts: Sequence[str]) -> ExpertPool:
        """Returns the pool of fewer experts, in this order; raises CheckpointError for others.

        `names` stay, so that every merge of one pool writes the same tensors; a tensor that no
        remaining adapter touches has deltas of zero.
        """
        compatibility.check_known(experts, self.expert_names)
        if tuple(experts) == self.expert_names:
            return self
        return replace(
            self,
            experts={name: self.experts[name] for name in experts},
            heads=tuple(name for name in experts if name in self.heads),
            _deltas=None,
            _all=self._all or self,
            _stacks=None if self._stacks is None else {},
        )

    def resident(
        self,
        device: torch.device,
        *,
        cache_deltas: bool = False,
        cache_bytes: int = CACHE_BYTES,
        shared: bool = False,
        stream: bool = False,
        on_model: Callable[[], object] = lambda: None,
    ) -> ExpertPool:
        """Returns the same pool held in memory on `device`: own dtypes, adapters as factors.

        Args:
            device: where merges will run.
            cache_deltas: also keep every float32 delta once computed: faster, and as much memory
                as all experts in float32.
            cache_bytes: most bytes on `device` for what no candidate changes (order of
                magnitudes, noise), kept from the first merge that needs it; 0: none. Results do
                not depend on it.
            shared: leave the weights in their files, which the system keeps in memory once for
                all processes of a machine, at a quarter more time a merge; only on a CPU. Those
                in a zoo would be decoded at every read, so they are held.
            stream: leave base and whole experts in host memory, pinned for CUDA, and copy one
                tensor while the one before it is merged: for experts that `device` cannot hold.
            on_model: called after base and every expert.
        """
        if shared and stream:
            raise ValueError("weights are either shared or streamed: set one of the two")
        if shared and device.type != "cpu":
            raise ValueError(f"weights on {device} cannot be shared with other processes")

        def keep(weights: Weights) -> Weights:
            return StreamedWeights(weights, device) if stream else held(weights, device)

        def place(expert: Expert) -> Expert:
            if shared and not _in_zoo(expert):
                return expert
            if stream and isinstance(expert, CheckpointExpert):
                return replace(expert, weights=keep(expert.weights))
            return expert.to(device)

        # what an adapter adds is kept in the cache, as long as it fits
        adapters = len(self.experts) > len(_checkpoints(self.experts))
        experts = {}
        for name, expert in self.experts.items():
            experts[name] = place(expert)
            on_model()
        in_files = shared and not self.base.stored.in_zoo
        base = self._base_weights if in_files else keep(self._base_weights)
        on_model()
        return replace(
            self,
            experts=experts,
            device=device,
            _base_weights=base,
            _deltas={} if cache_deltas else None,
            _all=None,
            _cache=TensorCache(cache_bytes),
            _stacks=None if stream or shared or adapters else {},
        )

    def classifiers(self, *, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
        """Returns expert -> its classification model; all share one encoder, now the base's.

        ``model.base_model`` of any of them is that encoder, whose ``state_dict`` has `names`.
        Where the base has no pooler and the experts do (BERT from a masked language model), the
        pooler stays with the head and the rest of the encoder is shared.
        """
        experts = _checkpoints(self.experts).items()
        own = {name: expert.checkpoint for name, expert in experts if name in self.heads}
        return classifiers.assemble(self.base, own, dtype=dtype, device=device)


class _BaseWeights(LazyWeights):
    """The base's tensors by the names of a pool."""

    def __init__(self, pool: ExpertPool) -> None:
        super().__init__(pool.names)
        self._pool = pool

    def _tensor(self, name: str) -> Tensor:
        return self._pool.base_tensor(name)


class _ExpertWeights(LazyWeights):
    """One expert's tensors by the names of the pool."""

    def __init__(self, pool: ExpertPool, expert: Expert) -> None:
        super().__init__(pool.names)
        self._pool, self._expert = pool, expert

    def _tensor(self, name: str) -> Tensor:
        return self._expert.tensor(name, self._pool.base_tensor(name))


def _checkpoints(experts: Mapping[str, Expert]) -> dict[str, CheckpointExpert]:
    """Returns the experts that are full checkpoints."""
    return {name: e for name, e in experts.items() if isinstance(e, CheckpointExpert)}


def _begin_hashing(directories: Iterable[Path]) -> None:
    """Begins what takes long; what is wrong with a model is said where it is opened."""
    for directory in directories:
        with suppress(CheckpointError, OSError):
            if not is_adapter(directory):
                begin_sha256(find_weights(directory)[0])


def _in_zoo(expert: Expert) -> bool:
    return isinstance(expert, CheckpointExpert) and expert.checkpoint.stored.in_zoo


def _merged_names(base: Checkpoint, experts: Mapping[str, Expert]) -> tuple[str, ...]:
    """Returns the float tensors that at least one expert changes and none lacks."""
    full = list(_checkpoints(experts).values())
    touched: set[str] = set()
    for expert in experts.values():
        touched |= expert.touched if isinstance(expert, Adapter) else set(base)
    return tuple(
        name
        for name in base
        if name in touched
        and base.dtype(name).is_floating_point
        and all(name in expert.weights for expert in full)
    )


def _check_finite(owner: str, model: Checkpoint, on_bytes: Callable[[int], object]) -> None:
    if model.stored.known_finite or known_finite(model.sha256, model):
        on_bytes(model.file_bytes)
        return
    _refuse_nonfinite(owner, model.items(), on_bytes)
    remember_finite(model.sha256, model)


def _refuse_nonfinite(
    owner: str, tensors: Iterable[tuple[str, Tensor]], on_bytes: Callable[[int], object]
) -> None:
    for name, tensor in tensors:
        if not finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{owner}: tensor {name} holds {bad} values that are NaN or infinite; "
                "use an intact checkpoint"
            )
        on_bytes(tensor.nbytes)
