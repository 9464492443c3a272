"""The one model that stays in memory; candidates are written into its parameters in place."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluators.engine.capabilities import Capabilities, measured
from evaluators.evaluator import ModelInfo
from merging.checkpoints.architecture import head_kind
from merging.checkpoints.experts import ExpertPool
from merging.stacks.depth import AdjustableDepth, Restacked
from merging.stacks.layer_stack import StackedWeights, layers_of
from merging.stacks.layers import LayerMap
from merging.weights import InPlaceWeights, Weights

_LINE = 64  # bytes of the cache
_DEFAULT_LENGTH = 2048  # where neither config nor tokenizer gives one, as lm-eval does


class Resident:
    """A Hugging Face model in eval mode whose parameters take one candidate after the other.

    Args:
        module: the model that weights are written into; for classifiers their shared backbone.
        classifiers: head name to full classification module; each holds `module` as its backbone.
        device: where the modules lie; they are moved there.
        max_length: most tokens of one request; None: as the model's config says.
        original: what tensors hold that a candidate leaves alone; None: what the last one left.
        depth: shortens the model to a candidate's layers; None: all have the base's.
        directory: of the base's files; see `ModelInfo`.

    Attributes:
        shared: tensor -> whether rows of one pass can each have their own; as far as measured.
        padded: shapes of two rows -> whether the shorter may be padded to the longer; likewise.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        tokenizer: Any,
        image_processor: Any = None,
        classifiers: Mapping[str, nn.Module] | None = None,
        device: torch.device | str = "cpu",
        max_length: int | None = None,
        original: Weights | None = None,
        depth: AdjustableDepth | None = None,
        directory: Path | None = None,
    ) -> None:
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens, got {max_length}")
        self.device = torch.device(device)
        self.module: Any = module.to(self.device).eval().requires_grad_(False)
        self.classifiers: dict[str, Any] = {
            head: classifier.to(self.device).eval().requires_grad_(False)
            for head, classifier in (classifiers or {}).items()
        }
        self.dtype: torch.dtype = next(module.parameters()).dtype
        for model in (self.module, *self.classifiers.values()):
            _align(model)
        self._targets = _targets(module)
        self._original = original
        self._depth = depth
        self._written: set[str] = set()
        self.shared: dict[str, bool] = {}
        self.padded: dict[Hashable, bool] = {}
        if depth is not None:
            depth.set(None)
        writes = _writes(self.module) and not self.classifiers
        encoder_decoder = bool(getattr(self.module.config, "is_encoder_decoder", False))
        causal = writes and not encoder_decoder
        self.info = ModelInfo(
            tokenizer=tokenizer,
            image_processor=image_processor,
            max_length=max_length or _config_length(self.module.config, tokenizer, causal=causal),
            heads=tuple(self.classifiers),
            causal=causal,
            classes={head: _classes(one) for head, one in self.classifiers.items()},
            head_kinds={head: _kind(one) for head, one in self.classifiers.items()},
            encoder_decoder=writes and encoder_decoder,
            decoder_start=_decoder_start(self.module) if writes else None,
            directory=directory,
        )

    @classmethod
    def from_pool(
        cls,
        pool: ExpertPool,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        max_length: int | None = None,
        layers: int | None = None,
    ) -> Resident:
        """Returns a resident with the base's weights; with the experts' heads where they have any.

        Args:
            dtype: of the parameters; a search that steps below its resolution sees no change.
            max_length: most tokens of one request; None: as the base's config says.
            layers: of the candidates, where they may be stacks of another depth than the base;
                the model holds as many as the deeper of both.
        """
        device = torch.device(device)
        classifiers = pool.classifiers(dtype=dtype, device=device) if pool.heads else {}
        depth = None
        if classifiers:
            module = _shared_backbone(classifiers, pool.names)
        elif layers is None:
            module = pool.base.module(dtype=dtype, device=device)
        else:
            module, depth = _adjustable(pool, layers, dtype, device)
        return cls(
            module,
            tokenizer=pool.base.tokenizer(),
            image_processor=pool.base.image_processor(),
            classifiers=classifiers,
            device=device,
            max_length=max_length,
            original=pool.base,
            depth=depth,
            directory=pool.base.path,
        )

    def write(self, weights: Weights) -> None:
        """Copies every tensor of `weights` into its parameter or buffer, in place.

        Names that `weights` lacks go back to the original, where there is one. Lazy weights are
        computed as they are read, one tensor at a time.

        Raises:
            ValueError: a name that the model does not have, or a tensor of another shape; names
                are checked before the first tensor is written.
        """
        for name in weights:
            if name not in self._targets:
                raise ValueError(self._unknown(name))
        if self.info.causal or self.info.encoder_decoder:
            _ = self.capabilities
        if isinstance(weights, StackedWeights):
            weights.check_in_place()
        if self._depth is not None:
            self._depth.set(layers_of(weights))
        with torch.no_grad():
            self._restore(weights)
            in_place = weights if isinstance(weights, InPlaceWeights) else None
            for name in weights:
                target = self._targets[name]
                if in_place is not None:
                    _check_shape(name, in_place.shape(name), target)
                    in_place.write(name, target)
                else:
                    tensor = weights[name]
                    _check_shape(name, tensor.shape, target)
                    target.copy_(tensor)

    @cached_property
    def capabilities(self) -> Capabilities:
        """What a language model can do with several rows at once.

        Measured before the first candidate is written, so that it does not depend on any.
        """
        return measured(self.module, self.info.max_length)

    @contextmanager
    def without_candidate(self) -> Iterator[None]:
        """Puts the original in the candidate's place for a while, so that no measure shows it."""
        written = self._written
        held = {name: self._targets[name].clone() for name in written}
        with torch.no_grad():
            self._restore({})
            try:
                yield
            finally:
                for name, tensor in held.items():
                    self._targets[name].copy_(tensor)
                self._written = written

    def placed(self, tensor: Tensor) -> Tensor:
        """Returns an input on the device, in the model's dtype where it is of floats."""
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def tensor(self, name: str) -> Tensor:
        """Returns a parameter or buffer itself; raises ValueError for a name there is not."""
        if name not in self._targets:
            raise ValueError(self._unknown(name))
        return self._targets[name]

    def _restore(self, weights: Weights) -> None:
        """Puts back what earlier candidates have written and this one will not."""
        names = set(weights)
        if self._original is not None:
            for name in sorted(self._written - names):
                if name in self._original:  # else a layer that the base does not have
                    self._targets[name].copy_(self._original[name])
        self._written = names

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._targets, n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        return f"the model has no parameter or buffer {name!r}{hint}"


def _check_shape(name: str, shape: torch.Size, target: Tensor) -> None:
    if shape != target.shape:
        raise ValueError(
            f"tensor {name!r} has shape {tuple(shape)}, the model's has "
            f"{tuple(target.shape)}; candidates must have the base's architecture"
        )


def _targets(module: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer by name, aliases of tied weights included."""
    targets: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    targets.update(module.named_buffers(remove_duplicate=False))
    return targets


def _align(module: nn.Module) -> None:
    """Moves what lies on the CPU to where a cache line begins; what shares memory still does.

    A model's tensors are views of its file, at any place: every other store would touch two lines,
    which costs a merge a third of its time. Tensors that share a part of their memory stay.
    """
    views: dict[tuple[Any, ...], list[Tensor]] = {}
    spans: set[tuple[int, int]] = set()
    for tensor in _targets(module).values():
        if tensor.device.type != "cpu" or not tensor.numel():
            continue
        begin, size = tensor.data_ptr(), tensor.nbytes
        if tensor.is_contiguous():
            views.setdefault((begin, size, tensor.shape, tensor.dtype), []).append(tensor)
        else:  # lies somewhere within its storage
            begin, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        spans.add((begin, begin + size))
    shapes = Counter((begin, begin + size) for begin, size, *_ in views)
    for (begin, size, *_), tensors in views.items():
        span, end = (begin, begin + size), begin + size
        alone = not any(o != span and o[0] < end and begin < o[1] for o in spans)
        if begin % _LINE and shapes[span] == 1 and alone:
            moved = tensors[0].data.clone()
            for tensor in tensors:
                tensor.data = moved


def _adjustable(
    pool: ExpertPool, layers: int, dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, AdjustableDepth | None]:
    """Returns a model that can be as deep as the base and as the candidates."""
    stack = LayerMap.of(pool.base)
    if layers == stack.count:
        return pool.base.module(dtype=dtype, device=device), None
    stack.check_depth(layers)
    shallow, filling = layers < stack.count, [i % stack.count for i in range(layers)]
    like = pool.base if shallow else Restacked(pool.base, filling)
    module = like.module(dtype=dtype, device=device)
    return module, AdjustableDepth(module, stack)


def _shared_backbone(classifiers: Mapping[str, nn.Module], names: Sequence[str]) -> nn.Module:
    """Returns one classifier's backbone, after a check that all hold the same parameters."""
    backbones: dict[str, Any] = {
        head: getattr(classifier, "base_model", None) for head, classifier in classifiers.items()
    }
    first, *_ = backbones.values()
    for head, backbone in backbones.items():
        for name in names:
            if backbone.get_parameter(name) is not first.get_parameter(name):
                raise ValueError(
                    f"the classifiers of {next(iter(backbones))} and {head} do not share tensor "
                    f"{name!r}, so that writing into one would leave the other behind"
                )
    module: nn.Module = first
    return module


def _kind(classifier: nn.Module) -> str:
    return head_kind(type(classifier).__name__) or "inputs"


def _classes(classifier: Any) -> tuple[str, ...]:
    if _kind(classifier) == "spans":
        return ("start", "end")
    config = classifier.config
    return tuple(str(config.id2label.get(i, i)) for i in range(config.num_labels))


def _writes(module: Any) -> bool:
    can_generate = getattr(module, "can_generate", None)
    return can_generate is not None and bool(can_generate())


def _decoder_start(module: Any) -> int | None:
    """Returns what labels are shifted by in training, or else what generation begins with."""
    configs = (module.config, getattr(module, "generation_config", None))
    tokens = (getattr(config, "decoder_start_token_id", None) for config in configs)
    return next((int(token) for token in tokens if token is not None), None)


def _config_length(config: Any, tokenizer: Any, *, causal: bool) -> int:
    """Returns the context length; encoders are bounded by their tokenizer too.

    RoBERTa's config counts two positions that no token can take; its tokenizer knows.
    """
    text = getattr(config, "text_config", None) or config
    lengths = [
        int(length)
        for key in ("n_positions", "max_position_embeddings", "n_ctx", "max_target_positions")
        if (length := getattr(text, key, None)) is not None and length > 0  # XLNet has -1
    ][:1]
    if tokenizer is not None and not (causal and lengths):
        lengths.append(int(min(tokenizer.model_max_length, 10**9)))
    return min(lengths) if lengths and min(lengths) < 10**9 else _DEFAULT_LENGTH
