"""A finished search shown again, without what only a search needs."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.reports.table import table
from experiments.runs.directory import plan_run
from experiments.runs.errors import explained
from experiments.runs.files import read_json
from experiments.setup.own_tasks import with_tasks


def show_finished(config: DictConfig) -> float | None:
    """Shows the run of a configuration if it is finished; returns the winner's fitness, or None.

    A private run, which may have a key left to destroy, and one that a zoo keeps are shown by the
    search itself. Options are not checked, which imports the classes that they name: the run's
    identity says that they are those of a search that was done.
    """
    if config.privacy or config.zoo:
        return None
    try:
        with explained():
            config = with_tasks(config)
            run = plan_run(config, strategy_name())
            finished = is_finished(run, config)
    except (TypeError, AttributeError):  # an option of a wrong type, which the search refuses
        return None
    return show(run, config) if finished else None


def strategy_name() -> str:
    """Returns the strategy's name on the command line, for the name of the run."""
    if not HydraConfig.initialized():
        return "search"
    return str(HydraConfig.get().runtime.choices.get("strategy", "search"))


def is_finished(run: Path, config: DictConfig) -> bool:
    """Whether all is written, in the zoo too, and as many static merges are read as are asked for.

    A private search can't be taken up again: its key is gone.
    """
    if not ((run / "summary.json").exists() and (run / "report.html").exists()):
        return False
    if config.zoo and _kept(config, run) is None:
        return bool(config.privacy)
    read, asked = read_json(run / "summary.json").get("held_out", "all"), config.baselines.report
    return bool(config.privacy) or read == "all" or (asked != "all" and asked <= read)


def show(run: Path, config: DictConfig) -> float:
    """Prints a finished run's table; returns the winner's fitness."""
    summary = read_json(run / "summary.json")
    print(table(summary))
    print(f"\nrun       {run}\nreport    {run / 'report.html'}")
    if (run / "model").exists():
        print(f"model     {run / 'model'}")
    elif config.save_model:
        print(f"model     not there: evomerge rebuild {run / 'recipe.json'} --out DIR writes it")
    if config.zoo:
        kept = _kept(config, run)
        place = "" if config.zoo is True else f" --zoo {config.zoo}"
        print(f"zoo       {kept or f'not there: evomerge zoo add {run}{place} adds the winner'}")
    return float(summary["fitness"])


def _kept(config: DictConfig, run: Path) -> str | None:
    from experiments.searches.keeping import kept_winner

    return kept_winner(config, run)
