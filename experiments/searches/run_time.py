"""How long a whole run takes, in the words of its steps: paces, times how often each is gone."""

import math

from omegaconf import DictConfig

from evaluators.requests import EvaluationError
from evaluators.tries import Try
from experiments.reports.table import duration
from experiments.searches.paces import CandidatePace, Paces
from experiments.setup.ingredients import Ingredients
from experiments.setup.parts import SearchParts
from experiments.setup.problem import Problem

_FILES_S = 1.0  # to write certificate, summary and report, but for what grows with the model
_IMPROVEMENTS = 8  # of a usual search, which the certificate measures


def time_lines(
    config: DictConfig, parts: SearchParts, ingredients: Ingredients, trial: Problem
) -> list[str]:
    """Returns the estimated time of a run and of its steps, a line each for a person.

    What an earlier start has done is not taken off.

    Args:
        trial: the problem as it stands before anything is scored; neither asked nor told.
    """
    try:
        with Try() as tried:
            paces = Paces.take(config, parts, ingredients, trial.start)
    except EvaluationError as error:
        tried.failure = str(error)
    if tried.failure is not None:  # no reason not to search: what has to work is tried by `check`
        return [f"time        not known: {tried.failure}"]
    steps = run_times(config, parts, paces)
    ends = {"racing": parts.racing, "budget.target": config.budget.target}
    sooner = " and ".join(name for name, given in ends.items() if given is not None)
    most = f", at most: {sooner} may make the search shorter" if sooner else ""
    search = paces.search
    return [
        f"candidate   about {search.scored:.2g} s ({search.merge:.2g} s merging)",
        f"time        about {_text(sum(steps.values()))} for the whole run{most}",
        *(f"            {_text(seconds):>8}  {step}" for step, seconds in steps.items()),
    ]


def _text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def run_times(config: DictConfig, parts: SearchParts, paces: Paces) -> dict[str, float]:
    """Returns the steps of a run, and the seconds of each; see `time_lines`."""
    return {
        **_references(parts, paces),
        **_searches(config, parts, paces),
        **_second_look(config, paces),
        **_held_out(parts, paces),
        "certificate and files": _files_s(config, paces),
    }


def _references(parts: SearchParts, paces: Paces) -> dict[str, float]:
    if parts.privacy is not None:
        return {}  # none is scored on private items
    merges = [*[paces.write] * paces.models, *paces.statics, *paces.starts]
    seconds = sum(merges) + len(merges) * paces.ask["search"]
    return {f"references: {len(merges)} models on search items": seconds}


def _searches(config: DictConfig, parts: SearchParts, paces: Paces) -> dict[str, float]:
    search, inside = paces.search, paces.inside
    count = _evaluations(config, parts, search)
    workers = min(parts.execution.parallel, max(1, count))
    steps = {f"search: {count or 'any number of'} evaluations": count * search.scored / workers}
    if config.common_items is not None and parts.privacy is None:
        again = 2 * config.finalists  # the best of all generations, on all items
        steps[f"the best {again} again"] = again * (search.merge + paces.ask["search"])
    if inside is not None:
        text = "as many inside the hull, to compare (in_hull=null: not)"
        steps[text] = count * inside.scored / workers
    return steps


def _evaluations(config: DictConfig, parts: SearchParts, search: CandidatePace) -> int:
    """Returns how many the budget allows; 0: only a target ends the search."""
    most, seconds = config.budget.evaluations, config.budget.seconds
    if seconds is None:
        return int(most or 0)
    in_time = math.ceil(float(seconds) * parts.execution.parallel / search.scored)
    return in_time if most is None else min(int(most), in_time)


def _second_look(config: DictConfig, paces: Paces) -> dict[str, float]:
    """Returns the step in which finalists of both searches, and the winner, answer once more."""
    if "selection" not in paces.ask:
        return {}
    finalists = 0 if config.choose == "shrinkage" else config.finalists
    searches = [paces.search, *([] if paces.inside is None else [paces.inside])]
    merges = [pace.merge for pace in searches for _ in range(finalists)] + [paces.search.merge]
    seconds = sum(merges) + len(merges) * paces.ask["selection"]
    return {f"second look: {len(merges)} models on selection items": seconds}


def _held_out(parts: SearchParts, paces: Paces) -> dict[str, float]:
    if "report" not in paces.ask:
        return {}
    statics = sorted(paces.statics)
    if parts.privacy is None:  # else nothing tells which are best: all
        statics = statics[: parts.held_out]
    mean = sum(paces.statics) / max(1, len(paces.statics))  # which are best is not known yet
    winners = [paces.search, *([] if paces.inside is None else [paces.inside])]
    count = paces.models + len(statics) + len(winners)
    seconds = paces.models * paces.write + len(statics) * mean + count * paces.ask["report"]
    text = f"held-out: {count} models on report items"
    return {text: seconds + sum(pace.merge for pace in winners)}


def _files_s(config: DictConfig, paces: Paces) -> float:
    """Returns the seconds of the last step, which merges all points of the certificate anew."""
    saved = int(config.save_model) + int(config.adapter_rank is not None)
    points = int(config.finalists) + _IMPROVEMENTS + saved
    return _FILES_S + points * paces.search.merge + sum(paces.statics)
