"""Scores of one model: `evomerge evaluate`."""

import json
from pathlib import Path

from omegaconf import DictConfig

from evaluators.requests import EvaluationError, TransientFailure
from experiments.runs.directory import check_writable
from experiments.runs.errors import UserError, explained
from experiments.runs.model_scores import ModelScores, evidence, stated, told_apart
from experiments.runs.options import check_groups, check_options
from experiments.setup import assemble
from experiments.setup.dry_run import check_data
from experiments.setup.own_tasks import with_tasks
from experiments.zoo.opening import open_sources
from merging.checkpoints.experts import ExpertPool
from merging.files import write_text


def run_evaluate(config: DictConfig) -> float:
    """Prints every score of ``config.model`` and writes them to ``config.out`` if it is named.

    Returns:
        The first task's main score, for a sweeper.
    """
    with explained():
        check_options(config)
        config = with_tasks(config)
        if config.out is not None:
            _check_file(Path(config.out))
        check_groups(config)
        check_data(config.report_on)
        machine = assemble.open_machine(config)
        base = config.base or config.model
        open_sources([base, config.model])
        pool = ExpertPool.open(
            base, {"model": config.model}, trust_remote_code=config.trust_remote_code
        )
        resident = assemble.open_resident(pool, machine)
        panel = assemble.open_panel("report", config.report_on, resident)
        if panel is None:
            raise UserError(
                "report_on names no evaluator: choose a group, e.g. evaluator@report_on=NAME"
            )
        assemble.read_through(pool)
        resident.write(pool.resident(machine.device).expert_weights("model"))
    try:
        scores = panel.evaluate(assemble.open_engine(config, resident))
    except (EvaluationError, TransientFailure) as error:
        raise UserError(f"{config.model} cannot be scored: {error}") from error
    width = max(len(key) for key in scores)
    for key, score in scores.items():
        line = f"{key:<{width}}  {score.value:.6g}  ({panel.directions[key]})"
        print(f"{line}  {evidence(score.chance, score.interval)}".rstrip())
    for key in panel.main.values():
        if (share := scores[key].cut_off) is not None:
            print(f"note: {key}: {share:.1%} of the answers were cut off at their most tokens")
    for sentence in told_apart([ModelScores.of(str(config.model), "expert", "report", scores)]):
        print(f"note: {sentence}")
    if config.out is not None:
        content = {"model": str(config.model), "scores": {k: s.value for k, s in scores.items()}}
        content |= {name: values for name, values in stated(scores).items() if values}
        with explained():
            write_text(Path(config.out), json.dumps(content, indent=2) + "\n")
    return scores[next(iter(panel.main.values()))].value


def _check_file(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"out={out} is a directory: name a JSON file in it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"out={out}: {out.absolute().parent} does not exist: make it first")
    check_writable(out.absolute().parent, "out")
