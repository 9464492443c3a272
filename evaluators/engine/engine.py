"""Runs requests on the resident model in padded batches; nothing is prepared twice."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch

from evaluators.engine.batching import Answers, Deadline, EngineRun, Job, grown
from evaluators.engine.class_logits import ClassLogitsJob
from evaluators.engine.compiled import CompiledForward
from evaluators.engine.conditioned import (
    ConditionedGenerationJob,
    ConditionedLikelihoodJob,
    is_conditioned,
)
from evaluators.engine.generation import GenerationJob
from evaluators.engine.likelihood import LikelihoodJob
from evaluators.engine.matching import MatchJob
from evaluators.engine.population import PLAIN, PopulationForward, factor_bytes
from evaluators.engine.resident import Resident
from evaluators.engine.token_statistics import TokenStatisticsJob
from evaluators.requests import (
    Classify,
    EvaluationError,
    Generate,
    Loglikelihood,
    Match,
    Request,
    Response,
    TokenStatistics,
    TransientFailure,
    is_out_of_memory,
)
from merging.lora.low_rank import LowRankDeltas

_log = logging.getLogger(__name__)
BATCH_TOKENS = 8192
_REMEMBERED = 8  # plans kept on the device: one per panel, and a few subsets
_CPU_PASS = 512  # tokens of a pass that candidates share
_FACTOR_BYTES = 1 << 30  # of a population's factors, where the device does not tell its memory
_JOBS: Mapping[type[Request], Callable[..., Job]] = {
    Loglikelihood: LikelihoodJob,
    Generate: GenerationJob,
    Classify: ClassLogitsJob,
    Match: MatchJob,
    TokenStatistics: TokenStatisticsJob,
}


class Engine:
    """Answers requests with the resident model.

    The same tuple of requests, given again, is neither planned nor tensorised again: its padded
    inputs stay on the device. The plan depends on the requests alone, so the same weights give
    the same answers to the bit.

    Args:
        batch_tokens: most padded tokens of one forward pass; halved where memory runs out twice.
            None: 8192, and on CUDA as many more as fit into the memory that a first run leaves.
            1: every request by itself, so that its answer depends on no other, to the bit.
        timeout_s: most seconds per candidate; looked at between forward passes. None: no limit.
        pass_tokens: most tokens of one pass that several candidates share; None: a few hundred on
            a CPU, where larger passes are no faster than single candidates, else `batch_tokens`.
        compile: whether the model without its output layer is compiled (`torch.compile`) for
            candidates that have a pass to themselves; the first passes then take minutes.
    """

    def __init__(
        self,
        resident: Resident,
        *,
        batch_tokens: int | None = 8192,
        timeout_s: float | None = None,
        pass_tokens: int | None = None,
        compile: bool = False,
    ) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1 or null, got {batch_tokens}")
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0 seconds or null, got {timeout_s}")
        self.resident = resident
        self.batch_tokens = batch_tokens or BATCH_TOKENS
        self._find_batch_tokens = batch_tokens is None and resident.device.type == "cuda"
        self._timeout_s = timeout_s
        self._pass_tokens = pass_tokens or (_CPU_PASS if resident.device.type == "cpu" else None)
        self._compiled = CompiledForward(resident.module) if compile else None
        self._plans: dict[int, tuple[tuple[Request, ...], int, list[Job]]] = {}

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Returns the answers of the model as it is to `requests`, in order.

        Raises:
            EvaluationError: the logits are not finite.
            TransientFailure: memory runs out with one row per batch, or the time is up.
            ValueError: a request that this model cannot answer whatever its weights are.
        """
        (answers,) = self.run_population(requests, (PLAIN,))
        if isinstance(answers, EvaluationError):
            raise answers
        return answers

    def run_population(
        self, requests: Sequence[Request], candidates: Sequence[LowRankDeltas]
    ) -> list[list[Response] | EvaluationError]:
        """Returns every candidate's answers to `requests`, in order, or why it has none.

        They are those of the candidates' own weights but for rounding. Candidates are taken
        together as far as `pass_tokens` and the memory for their factors go.

        Args:
            candidates: each one's differences from the weights that the resident holds.

        Raises:
            TransientFailure: as `run`, of any candidate.
            ValueError: as `run`, or as `PopulationForward`.
        """
        asked = requests if isinstance(requests, tuple) else tuple(requests)
        if self._find_batch_tokens and asked:
            self._find_batch_tokens = False
            self._grow_batch_tokens(asked)
        answers: list[list[Response] | EvaluationError] = []
        for group in self._groups(candidates):
            try:
                answers += self._run(asked, group, keep=asked is requests)
            except EvaluationError as error:
                answers += [error] * len(group)
        return answers

    def _grow_batch_tokens(self, requests: tuple[Request, ...]) -> None:
        """Lets the centre answer, and sees how many times its memory is still free."""
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.resident.device)
        self._run(requests, (PLAIN,), keep=True)
        used = torch.cuda.memory_reserved(self.resident.device) - before
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.resident.device)
        self.batch_tokens = grown(self.batch_tokens, used, free)
        _log.info("batch_tokens=%d", self.batch_tokens)

    def _run(
        self, requests: tuple[Request, ...], candidates: Sequence[LowRankDeltas], *, keep: bool
    ) -> list[list[Response] | EvaluationError]:
        deadline = Deadline(self._timeout_s and self._timeout_s * len(candidates))
        batch_tokens, failed = self.batch_tokens, False
        while True:
            answers = self._attempt(requests, candidates, batch_tokens, deadline, keep=keep)
            if answers is not None:
                self.batch_tokens = batch_tokens
                return answers.by_candidate()
            # outside the handler of the error, which would keep the tensors of the failed pass
            self._plans.pop(id(requests), None)
            if self.resident.device.type == "cuda":
                torch.cuda.empty_cache()
            if failed:  # more than a moment's want: smaller batches, which round otherwise
                batch_tokens = max(1, batch_tokens // 2)
            failed = True
            _log.warning("out of memory; going on with batch_tokens=%d", batch_tokens)

    def _attempt(
        self,
        requests: tuple[Request, ...],
        candidates: Sequence[LowRankDeltas],
        batch_tokens: int,
        deadline: Deadline,
        *,
        keep: bool,
    ) -> Answers | None:
        """Returns the answers, or None where memory ran out and smaller batches may help."""
        jobs: list[Job] = []
        try:
            jobs = self._plan(requests, batch_tokens, keep=keep)
            answers = Answers(len(candidates), len(requests))
            population = PopulationForward(
                self.resident,
                candidates,
                pass_tokens=min(self._pass_tokens or batch_tokens, batch_tokens),
                cache_tokens=batch_tokens,
                writes=self.resident.device.type == "cpu",
            )
            compiled = (
                nullcontext() if self._compiled is None or any(candidates) else self._compiled
            )
            run = EngineRun(self.resident, population, deadline, answers)
            with torch.inference_mode(), population, compiled:
                for job in jobs:
                    job.run(run)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            alone = len(candidates) == 1 and jobs and all(job.most_rows == 1 for job in jobs)
            if batch_tokens == 1 or alone:
                raise TransientFailure(
                    "out of memory with one row per batch: free some of the device's, or begin "
                    "another run with shorter items, a smaller dtype or a larger device"
                ) from error
            return None
        return answers

    def _groups(self, candidates: Sequence[LowRankDeltas]) -> Iterator[Sequence[LowRankDeltas]]:
        """Yields as many candidates at a time as there is memory for their factors."""
        element = torch.finfo(self.resident.dtype).bits // 8
        budget = _factor_budget(self.resident.device)
        group: list[LowRankDeltas] = []
        used = 0
        for candidate in candidates:
            size = factor_bytes(candidate, element)
            if group and used + size > budget:
                yield group
                group, used = [], 0
            group.append(candidate)
            used += size
        if group:
            yield group

    def _plan(self, requests: tuple[Request, ...], batch_tokens: int, *, keep: bool) -> list[Job]:
        if not keep:  # a list may be changed by its owner, so its plan is good for one run only
            return _jobs(requests, self.resident, batch_tokens)
        plan = self._plans.pop(id(requests), None)
        if plan is None or plan[1] != batch_tokens:
            plan = (requests, batch_tokens, _jobs(requests, self.resident, batch_tokens))
        self._plans[id(requests)] = plan  # the tuple is held, so its id is not given away
        while len(self._plans) > _REMEMBERED:
            del self._plans[next(iter(self._plans))]
        return plan[2]


def _jobs(requests: tuple[Request, ...], resident: Resident, batch_tokens: int) -> list[Job]:
    """Returns one job for each kind of request that occurs; without batches one for each."""
    kinds = [_job(one, resident) for one in requests]
    if batch_tokens == 1:
        asked = zip(kinds, enumerate(requests), strict=True)
        return [kind([one], resident, batch_tokens=1) for kind, one in asked]
    jobs: list[Job] = []
    for kind in dict.fromkeys((*_JOBS.values(), *kinds)):  # in one order for all panels
        of_kind = [(i, one) for i, one in enumerate(requests) if kinds[i] is kind]
        if of_kind:
            jobs.append(kind(of_kind, resident, batch_tokens=batch_tokens))
    return jobs


def _job(request: Request, resident: Resident) -> Callable[..., Job]:
    """Returns what answers a request."""
    if isinstance(request, Loglikelihood) and is_conditioned(request, resident):
        return ConditionedLikelihoodJob
    if isinstance(request, Generate) and is_conditioned(request, resident):
        return ConditionedGenerationJob
    return _JOBS[type(request)]


def _factor_budget(device: torch.device) -> int:
    """Returns the bytes that the factors of one population may take."""
    if device.type != "cuda":
        return _FACTOR_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + reserved) // 4
