"""The verbs that are Hydra applications: search, check, merge, evaluate, statistics."""

from omegaconf import DictConfig

from experiments.runs.errors import one_sentence


def search(config: DictConfig) -> float:
    """Runs a search, or the many of a suite; returns the winner's fitness to the sweeper."""
    with one_sentence("evomerge search"):
        if config.suite is not None:
            from experiments.suites.suite import run_suite

            return run_suite(config)
        if config.procedure is not None:
            from experiments.suites.procedure import run_procedure

            return run_procedure(config)
        from experiments.searches.run import run_search

        return run_search(config)


def check(config: DictConfig) -> None:
    """Assembles and checks a search without running it."""
    with one_sentence("evomerge check"):
        if config.suite is not None:
            from experiments.suites.suite import check_suite

            return check_suite(config)
        if config.procedure is not None:
            from experiments.suites.procedure import check_procedure

            return check_procedure(config)
        from experiments.searches.run import run_check

        return run_check(config)


def merge(config: DictConfig) -> None:
    """Writes one static merge."""
    with one_sentence("evomerge merge"):
        from experiments.commands.merge_models import run_merge

        run_merge(config)


def evaluate(config: DictConfig) -> None:
    """Scores one model."""
    with one_sentence("evomerge evaluate"):
        from experiments.commands.evaluate_model import run_evaluate

        run_evaluate(config)


def statistics(config: DictConfig) -> None:
    """Gathers statistics of the experts' data, for merge methods that need them."""
    with one_sentence("evomerge statistics"):
        from experiments.gathering.run import run_statistics

        run_statistics(config)
