"""Many models under a memory limit: their differing blocks beside reloading them from disk.

Twenty deduplicated models of MiniLM's shape (22 million parameters, 91 MB in float32), each of
which has a twentieth of the base's large blocks and all of its small tensors anew, answer one
sentence a request, in random order and one after the other: one of 9 tokens, the median of TREC's
questions, or of 22, that of SST-2. Memory is that of four models, so that a fifth of the random
requests finds its model held, or of two: one module and the blocks that differ, the least that
ours needs.
Ours holds one module, and blocks in the rest. The others hold as many modules as memory does, and
load another model in the place of the one least recently used: as transformers does it, or with
the least work there is, from the safetensors file into the module that is there already. Under
such pressure no page of a file stays in memory: before each of them all files, the zoo's as well,
are dropped from the page cache. Every model is asked once before time is taken. They take turns of
twenty requests, so that none finds the processor's caches as another left them. All answers are
compared bit by bit.

What making ready saves is diluted by the forward pass, which is transformers' own for all. Rows
show both by themselves: how much sooner a model is ready, a request with one forward pass for all,
and what a forward pass is made of. What the published 43 counts is not known: its figures are not
in the paper's code.
"""

import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from evaluators.engine.served_set import ServedSet
from experiments.benchmarks.measured import Measured, in_turns
from experiments.benchmarks.models import byte_tokenizer
from merging.checkpoints.checkpoint import quiet_transformers
from merging.zoo.piecing import Piece
from merging.zoo.store import Zoo

MODELS, HELD, LEAST_HELD, REQUESTS = 20, 4, 2, 60
NEW = 0.05
"""Share of the base's large blocks that a model has anew."""

BAR, PUBLISHED = 10.0, 43
_AS_USUAL = "reloading by transformers"

_BLOCK = 4 * 384**2
_SHORT, _LONG = 9, 22


@dataclass
class Serving:
    """One way to answer requests, and the seconds that it took.

    Args:
        module: makes a model ready, and returns its module.
    """

    module: Callable[[str], Any]
    ready: float = 0.0
    forward: float = 0.0

    def answer(self, model: str, tokens: int) -> Tensor:
        """Returns a model's answer, ``(1, tokens, hidden)``."""
        ids = torch.arange(tokens)[None] + 4
        began = time.perf_counter()
        module = self.module(model)
        ready = time.perf_counter()
        with torch.inference_mode():
            answer: Tensor = module(ids).last_hidden_state
        self.ready += ready - began
        self.forward += time.perf_counter() - ready
        return answer

    def milliseconds(self) -> float:
        """Returns the mean of a request."""
        return 1e3 * (self.ready + self.forward) / REQUESTS

    def said(self) -> str:
        """Returns where they go."""
        return f"{1e3 * self.ready / REQUESTS:.1f} + {1e3 * self.forward / REQUESTS:.1f} ms"


class Reloading:
    """Whole models, as many as memory holds, loaded when they are asked for.

    Args:
        load: takes a model's directory and a module that is not needed any more, or None.
        most: how many are held.
    """

    def __init__(self, folder: Path, load: Callable[[Path, Any], Any], most: int) -> None:
        self._folder, self._load, self._most = folder, load, most
        self._held: OrderedDict[str, Any] = OrderedDict()

    def get(self, name: str) -> Any:
        """Returns the module of a model."""
        if name not in self._held:
            full = len(self._held) == self._most
            left = self._held.popitem(last=False)[1] if full else None
            self._held[name] = self._load(self._folder / name, left)
        self._held.move_to_end(name)
        return self._held[name]


def measure() -> Iterable[Measured]:
    """Yields rows for each kind of requests, and of the forward pass alone.

    Warm: all files stay in the page cache.
    """
    for tokens in (_SHORT, _LONG):
        yield _profile(tokens)
    with TemporaryDirectory() as folder, quiet_transformers():
        zoo = _models(Path(folder))
        names = [f"model{number:02d}" for number in range(MODELS)]
        drawn = random.Random(0).choices(names, k=REQUESTS)
        around = [names[i % MODELS] for i in range(REQUESTS)]
        for tokens in (_SHORT, _LONG):
            for held, said in ((HELD, ""), (LEAST_HELD, ", memory of two models")):
                kind = f"random{said}"
                yield from _rows(zoo, Path(folder), kind, names, drawn, tokens, held=held)
        yield from _rows(zoo, Path(folder), "round-robin", names, around, _SHORT)
        yield from _rows(zoo, Path(folder), "random, warm", names, drawn, _SHORT)


def _models(folder: Path) -> Zoo:
    """Returns a zoo of deduplicated models; the same lie below `folder` as plain directories."""
    _model(384).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    zoo = Zoo.open(folder / "zoo", create=True)
    zoo.add(folder / "base", "base")
    beside = {file.name: file.raw() for file in zoo.files("base") if not file.entries}
    stored = zoo.pieces("base")
    for number in range(MODELS):
        name, draw = f"model{number:02d}", np.random.default_rng(number)
        new = {tensor: list(_pieces(parts, draw)) for tensor, parts in stored.items()}
        zoo.add_pieces(name, "base", new, beside)
        zoo.export(name, folder / name)
    os.sync()
    return zoo


def _model(width: int) -> Any:
    config = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=6, num_attention_heads=12, intermediate_size=4 * width
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.BertModel(config)
    return model.eval()


def _pieces(parts: Iterable[Piece], draw: np.random.Generator) -> Iterator[Piece | bytes]:
    size = sum(part.length for part in parts)
    if size < _BLOCK:
        yield _noise(size, draw)
        return
    for block, start, length in parts:
        for at in range(0, length, _BLOCK):
            taken = min(_BLOCK, length - at)
            anew = draw.random() < NEW
            yield _noise(taken, draw) if anew else Piece(block, start + at, taken)


def _noise(size: int, draw: np.random.Generator) -> bytes:
    return draw.normal(0, 0.02, size // 4).astype(np.float32).tobytes()


def _rows(
    zoo: Zoo,
    folder: Path,
    kind: str,
    names: list[str],
    requests: list[str],
    tokens: int,
    *,
    held: int = HELD,
) -> Iterator[Measured]:
    cold = "warm" not in kind
    files = [*folder.glob("*/model.safetensors"), *zoo.directory.rglob("*.pack")]
    size = files[0].stat().st_size
    served = ServedSet(zoo, names, cache_bytes=(held - 1) * size)
    written: list[int] = []

    def serve(name: str) -> Any:
        written.append(served.serve(name))
        return served.resident.module

    loads = {_AS_USUAL: _new, "reloading into a module": _filled}
    ours = Serving(serve)
    others = {said: Serving(Reloading(folder, load, held).get) for said, load in loads.items()}
    everyone = [ours, *others.values()]
    dropped = files if cold else []
    for begin in range(0, MODELS + REQUESTS, MODELS):
        if begin == MODELS:
            for each in everyone:
                each.ready = each.forward = 0.0
        turn = [*names, *requests][begin : begin + MODELS]
        answers = [[_answer(each, name, tokens, dropped) for name in turn] for each in everyone]
        assert all(
            torch.equal(*pair) for its in answers[1:] for pair in zip(answers[0], its, strict=True)
        )
    changed = sum(written[len(names) :]) / REQUESTS / 1e6
    for said, other in others.items():
        yield Measured(
            f"{kind}, {tokens} tokens: time per request",
            ours.milliseconds(),
            other.milliseconds(),
            said,
            "ms",
            other.milliseconds() / ours.milliseconds(),
            BAR if cold and said == _AS_USUAL else None,
            note=_note(ours, other, changed, size),
        )
        if cold and said == _AS_USUAL:
            yield from _apart(f"{kind}, {tokens} tokens", ours, other)


def _apart(what: str, ours: Serving, other: Serving) -> Iterator[Measured]:
    """Yields making ready by itself, and with the shorter one of both forward passes for both."""
    shorter = min(ours.forward, other.forward)
    for part, forward in (("until it is ready", 0.0), ("per request, one forward pass", shorter)):
        mine, its = (1e3 * (each.ready + forward) / REQUESTS for each in (ours, other))
        yield Measured(f"{what}: time {part}", mine, its, _AS_USUAL, "ms", its / mine, None)


def _profile(tokens: int) -> Measured:
    """Returns a forward pass beside its matrix products alone, by the processor's clock."""
    module, narrow, ids = _model(384), _model(12), torch.arange(tokens)[None] + 4
    products = [each for each in module.modules() if isinstance(each, torch.nn.Linear)]
    states = {each.in_features: torch.ones(tokens, each.in_features) for each in products}

    def clock(work: Callable[[], Any], other: Callable[[], Any]) -> tuple[float, float, float]:
        return in_turns(work, other, rounds=31, clock=time.process_time)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            whole, multiplied, share = clock(
                lambda: module(ids), lambda: [each(states[each.in_features]) for each in products]
            )
            dispatch, read, _ = clock(
                lambda: narrow(ids), lambda: [each.weight.sum() for each in products]
            )
    finally:
        torch.set_num_threads(threads)
    return Measured(
        f"forward pass, {tokens} tokens, one thread",
        1e3 * whole,
        1e3 * multiplied,
        f"its {len(products)} matrix products alone",
        "ms of the processor",
        share,
        None,
        note=f"transformers' code around them, of a model 12 wide: {1e3 * dispatch:.1f} ms; "
        f"reading their weights once: {1e3 * read:.1f} ms",
    )


def _answer(serving: Serving, name: str, tokens: int, files: Iterable[Path]) -> Tensor:
    for path in files:
        _drop(path)
    return serving.answer(name, tokens)


def _note(ours: Serving, other: Serving, changed: float, size: int) -> str:
    """Says where the time goes, what bounds it, and what disk makes it the published figure."""
    loading = (PUBLISHED * (ours.ready + ours.forward) - other.forward) / REQUESTS
    return (
        f"making ready + forward pass with {torch.get_num_threads()} threads: {ours.said()} "
        f"({changed:.1f} MB written) beside {other.said()} ({size / 1e6:.0f} MB, or none where "
        f"the model is held): ready {other.ready / ours.ready:.0f} times sooner, and with nothing "
        f"to make ready {(other.ready + other.forward) / ours.forward:.1f} times per request, the "
        "forward pass being transformers' own; "
        f"{PUBLISHED} times per request would be loading at {size / loading / 1e6:.0f} MB/s"
    )


def _new(folder: Path, _: Any) -> Any:
    module: Any = transformers.BertModel.from_pretrained(folder)
    return module.eval()


def _filled(folder: Path, module: Any) -> Any:
    if module is None:
        return _new(folder, None)
    state = module.state_dict()
    with safe_open(folder / "model.safetensors", "pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118
            state[name].copy_(file.get_tensor(name))
    return module


def _drop(path: Path) -> None:
    """Drops a file from the page cache; it is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
