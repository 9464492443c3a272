"""The search by generations: ask, evaluate, write down, tell; a restart replays the history."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from search.loop.evaluation import Batch, Evaluated, Evaluation, batches
from search.loop.history import History, Record
from search.loop.session import Budget, Key, SearchResult, Session
from search.objective import Objective
from search.strategy import Candidate, G, Outcome, Strategy


def search(
    strategy: Strategy[G],
    evaluation: Evaluation[G],
    objective: Objective,
    history: History,
    budget: Budget,
    *,
    encode: Callable[[G], Any],
    canonical: Callable[[G], Any] | None = None,
    on_record: Callable[[Record, bool], None] | None = None,
    account: Callable[[int], str | None] | None = None,
    stall_generations: int = 20,
) -> SearchResult:
    """Searches until the budget is spent, and writes every candidate to the history.

    With a history that is not empty the strategy, freshly built, is told what is in it instead of
    evaluating again: the search goes on where it was stopped, with the same candidates.

    Args:
        evaluation: scores generations; where each has items of its own, fitness of different
            generations cannot be compared.
        budget: when to stop. A last generation that it cuts short is not told.
        encode: genome to JSON values, for the history.
        canonical: genome to JSON values that are equal for genomes that mean the same model;
            None: `encode`. A genome that was evaluated before on the same items is not evaluated
            again.
        on_record: called with every record in order, and whether it came from the history.
        account: called before every generation, those of earlier sessions included, with how
            many genomes have to be evaluated for it; the reason that it returns ends the search.
        stall_generations: so many generations in a row with nothing but genomes that were asked
            before end the search.

    Raises:
        SearchFailed: all candidates of a generation failed (of smaller generations than four:
            at least four in a row), or the search ended before any could be scored.
        HistoryError: the history belongs to another configuration or version.
    """
    session = Session(objective, history, budget, encode, canonical or encode, on_record)
    numbers = itertools.count()
    stalled = 0
    told: list[Record] = []
    while (stop := session.spent()) is None:
        number, known = next(numbers), session.genomes
        candidates = sorted(strategy.ask(), key=lambda candidate: candidate.id)
        if not candidates:
            stop = "exhausted"
            break
        items = number if evaluation.own_items else None
        asked = [(candidate, session.key(candidate.genome, items)) for candidate in candidates]
        fresh = session.fresh(asked)
        if account is not None and (stop := account(len(fresh))) is not None:
            break
        records = _generation(session, evaluation, number, asked, fresh)
        if len(records) < len(candidates):
            continue
        session.check_alive(records)
        strategy.tell([Outcome(r.id, r.fitness, r.cases) for r in records])
        told = records
        stalled = 0 if session.genomes > known else stalled + 1
        if stalled >= stall_generations:
            stop = "stalled"
            break
    return session.result(stop, told)


def _generation(
    session: Session[G],
    evaluation: Evaluation[G],
    number: int,
    asked: Sequence[tuple[Candidate[G], Key]],
    fresh: Sequence[Candidate[G]],
) -> list[Record]:
    """Returns the records of a generation; fewer than it has candidates where the budget ends."""
    pool, earlier = evaluation.pool, session.records
    recorded = sum(session.is_recorded(candidate) for candidate in fresh)
    waiting: dict[int, list[int]] = {}
    for positions in batches(len(fresh), evaluation.batch_size, recorded):
        batch = [fresh[i] for i in positions]
        task = Batch([candidate.genome for candidate in batch], number, earlier)
        waiting[pool.submit(task)] = [candidate.id for candidate in batch]
    results: dict[int, Evaluated] = {}
    records: list[Record] = []
    try:
        for candidate, key in asked:
            if session.spent() is not None:
                break
            while session.lacks(candidate, key) and candidate.id not in results:
                ticket, evaluated = pool.next()
                results |= zip(waiting[ticket], evaluated, strict=True)
            records.append(session.record(candidate, key, results.get(candidate.id)))
    finally:
        pool.drop()
    return records
