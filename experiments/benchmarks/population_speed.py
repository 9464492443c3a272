"""16 LoRA candidates in shared passes, beside one adapter after the other.

A random Llama of 21 million parameters; every candidate is an adapter of rank 8 on all linear
layers of the blocks. Compared with the faster of two loops written by hand: each adapter added by
hooks, as adapter libraries do it, and each multiplied out and written into the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from evaluators.engine.cached_rows import kept_logits
from evaluators.engine.engine import Engine
from evaluators.engine.forward import token_log_probs
from evaluators.engine.resident import Resident
from evaluators.requests import Generate, Loglikelihood, Request
from experiments.benchmarks.measured import Measured, Timing, in_turns, profile, skipped, waiting
from experiments.benchmarks.models import VOCABULARY, byte_tokenizer, random_factors, random_llama
from merging.lora.low_rank import LowRankProduct

CANDIDATES = 16

Adapter = Mapping[str, LowRankProduct]


def measure() -> list[Measured]:
    """Returns rows for log-likelihoods at 32 and 512 tokens per candidate, and for generation."""
    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    model = random_llama(**({"hidden": 2048, "layers": 16} if cuda else {}))
    resident = Resident(
        model.bfloat16() if cuda else model,
        tokenizer=byte_tokenizer(),
        device="cuda" if cuda else "cpu",
    )
    loops = _Loops(resident, [_adapter(resident, seed) for seed in range(CANDIDATES)])
    rows = [_likelihood(loops, 1, 32, bar=2.0), _likelihood(loops, 4, 128, bar=1.0)]
    measure = f"{CANDIDATES} LoRA candidates, 4 answers of 64 tokens each"
    if not cuda:
        return [*rows, skipped(measure, "the faster loop", "the bar is set for CUDA devices")]
    return [*rows, _generation(loops, measure)]


def _adapter(resident: Resident, seed: int) -> Adapter:
    factors = random_factors(resident.module, seed)
    like = resident.tensor(next(iter(factors)))
    return {name: LowRankProduct(a.to(like), b.to(like)) for name, (b, a) in factors.items()}


@dataclass(frozen=True)
class _Loops:
    """The three ways to let all adapters answer."""

    resident: Resident
    adapters: Sequence[Adapter]

    def with_hooks(self, answer: Callable[[], Any]) -> None:
        """Adds every adapter in turn to the outputs of its layers."""
        for adapter in self.adapters:
            handles = []
            for name, factors in adapter.items():
                layer = self.resident.module.get_submodule(name.removesuffix(".weight"))
                hook = partial(_add, factors.a.T, factors.b.T)
                handles.append(layer.register_forward_hook(hook))
            answer()
            for handle in handles:
                handle.remove()

    def written(self, centre: Mapping[str, Tensor], answer: Callable[[], Any]) -> None:
        """Writes every adapter's product in turn onto the centre's weights."""
        for adapter in self.adapters:
            with torch.no_grad():
                for name, factors in adapter.items():
                    target = self.resident.tensor(name)
                    torch.addmm(centre[name], factors.b, factors.a, out=target)
            answer()
        for name, tensor in centre.items():
            self.resident.tensor(name).copy_(tensor)

    def beside(self, ours: Callable[[], Any], other: Callable[[], Any]) -> Timing:
        """Returns seconds of both, and their ratio."""
        return in_turns(ours, other, wait=waiting(self.resident.device))

    def compared(
        self, requests: Sequence[Request], answer: Callable[[], Any], measure: str, bar: float
    ) -> Measured:
        """Returns the row: the population beside the faster of both loops."""
        engine, asked = Engine(self.resident), tuple(requests)
        centre = {name: self.resident.tensor(name).clone() for name in self.adapters[0]}

        def ours() -> None:
            engine.run_population(asked, self.adapters)

        timings = {
            "hooks, one at a time": self.beside(ours, lambda: self.with_hooks(answer)),
            "write, then forward": self.beside(ours, lambda: self.written(centre, answer)),
        }
        against, slower = sorted(timings, key=lambda name: timings[name][2])
        ours_s, other_s, ratio = timings[against]
        others = [tuple(_moved(request, by) for request in asked) for by in range(CANDIDATES)]
        ways = {"together": [tuple(chain.from_iterable(others))], "in as many turns": others}
        bare = {way: self.beside(ours, partial(_read, engine, t)) for way, t in ways.items()}
        way = min(bare, key=lambda way: bare[way][2])
        _, bare_s, to_bare = bare[way]
        note = (
            f"{slower}: ratio {timings[slower][2]:.2f}; limit: the bare model, without any "
            f"adapter, reads as many other items {way} in {bare_s:.3g} s: a ratio of "
            f"{ratio / to_bare:.2f} if adapters cost nothing"
        )
        if ratio < bar:
            entries = sum(tensor.numel() for tensor in centre.values())
            tokens = CANDIDATES * sum(_tokens(request) for request in asked)
            note += (
                f" (its layers' products at {2e-9 * entries * tokens / bare_s:.0f} GFLOP/s, "
                f"a large product alone runs at {self._product():.0f}); "
                f"where our time goes: {profile(ours)}"
            )
        return Measured(measure, ours_s, other_s, against, "s", ratio, bar, note=note)

    def _product(self) -> float:
        """Returns GFLOP per second of a product of two square matrices."""
        a = torch.ones(2048, 2048, device=self.resident.device, dtype=self.resident.dtype)
        work = partial(torch.mm, a, a)
        return 2e-9 * len(a) ** 3 / self.beside(work, work)[0]


def _tokens(request: Request) -> int:
    """Returns how many tokens the model reads."""
    if isinstance(request, Loglikelihood):
        return len(request.context) + len(request.continuation) - 1
    assert isinstance(request, Generate)
    return len(request.prompt) + request.max_new_tokens - 1


def _read(engine: Engine, turns: Sequence[tuple[Request, ...]]) -> None:
    for requests in turns:
        engine.run(requests)


def _moved(request: Request, by: int) -> Request:
    """Returns a request that begins with another token, so that no prefix of it is shared."""
    if isinstance(request, Loglikelihood):
        first, *rest = request.context
        return replace(request, context=((first + by) % VOCABULARY, *rest))
    assert isinstance(request, Generate)
    first, *rest = request.prompt
    return replace(request, prompt=((first + by) % VOCABULARY, *rest))


def _add(down: Tensor, up: Tensor, _: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    added: Tensor = (arguments[0] @ down) @ up
    return output + added


def _likelihood(loops: _Loops, rows: int, width: int, *, bar: float) -> Measured:
    """Every candidate reads `rows` texts of `width` tokens; half of each is scored."""
    draw = torch.Generator().manual_seed(1)
    texts = torch.randint(3, VOCABULARY, (rows, width + 1), generator=draw).tolist()
    half = width // 2
    requests = [Loglikelihood(tuple(t[: half + 1]), tuple(t[half + 1 :])) for t in texts]
    device = loops.resident.device
    ids = torch.tensor(texts, device=device)
    kept = torch.arange(rows * width, device=device).view(rows, width)[:, half:].flatten()
    token, row = ids[:, half + 1 :].flatten(), torch.arange(len(kept), device=device)

    @torch.inference_mode()
    def answer() -> list[float]:
        logits, _ = kept_logits(
            loops.resident.module, kept, input_ids=ids[:, :-1], use_cache=False
        )
        log_probs, _ = token_log_probs(logits, row, token)
        return [float(total) for total in log_probs.view(rows, -1).sum(dim=1)]

    measure = f"{CANDIDATES} LoRA candidates, log-likelihoods, {rows} x {width} tokens each"
    return loops.compared(requests, answer, measure, bar)


def _generation(loops: _Loops, measure: str) -> Measured:
    """Every candidate continues four prompts of 32 tokens by 64."""
    draw = torch.Generator().manual_seed(2)
    prompts = torch.randint(3, VOCABULARY, (4, 32), generator=draw).tolist()
    requests = tuple(Generate(tuple(prompt), 64) for prompt in prompts)
    engine = Engine(loops.resident)
    return loops.compared(requests, lambda: engine.run(requests), measure, 8.0)
