"""Who takes blocks of whom, by records alone: order, ceilings, options that exclude each other."""

from pathlib import Path

import pytest

from experiments.deduplication.models import DedupModel, Taking, assign
from merging.checkpoints.privacy_record import PrivacySpend
from tests.experiments.deduplication.test_run import made


def opened(root: Path, names: str) -> dict[str, DedupModel]:
    return {name: DedupModel.open(name, str(root / name), 256) for name in names.split()}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in ("base", "a", "b"):
        made(root, name, 0.08, 0)
    return root


def checks(target: str) -> list[PrivacySpend]:
    return [PrivacySpend("people", 500.0, 0.0, "test", "1", release=f"checks of {target}")]


def test_a_fair_target_comes_to_what_those_before_it_spent_too(family: Path) -> None:
    models = opened(family, "base a b")
    known = sum(model.epsilon for model in models.values()) + 2 * 500
    for fair, ceiling in ((False, 505.0), (True, known)):
        for most, takes in ((ceiling - 0.5, ["a"]), (ceiling, ["a", "b"])):
            found = assign(
                models, bases=["base"], plan="greedy", ceilings={"b": most}, fair=fair,
                checks=checks,
            )  # fmt: skip
            assert found == [Taking(target, ("base",)) for target in takes]


def test_who_has_no_promise_comes_last_and_spoils_none(family: Path, tmp_path: Path) -> None:
    models = opened(family, "base b")
    (made(tmp_path, "base", 0, 0) / "privacy.json").unlink()
    models = {"a": DedupModel.open("a", str(tmp_path / "base"), 256), **models}
    found = assign(models, bases=["base"], plan="greedy", ceilings={}, fair=True)
    assert [one.target for one in found] == ["b", "a"]


def test_a_base_is_chosen_without_regard_to_weights(family: Path, tmp_path: Path) -> None:
    """Each time another one lies in the middle of the others."""
    for middle in "xyz":
        root = tmp_path / middle
        root.mkdir()
        (root / "base").symlink_to(family / "base")
        for seed, name in enumerate("xyz"):
            made(root, name, 0.0 if name == middle else 0.3, seed)
        found = assign(opened(root, "z y x"), bases=[], plan="greedy", ceilings={})
        assert found == [Taking("y", ("x",)), Taking("z", ("x",))]


def test_the_papers_plans_refuse_what_they_do_not_know(family: Path) -> None:
    models = opened(family, "base a b")
    for plan in ("multi", "cross"):
        with pytest.raises(ValueError, match=f"plan={plan} knows no ceilings"):
            assign(models, bases=[], plan=plan, ceilings={"b": 9.0})
    with pytest.raises(ValueError, match="plan=cross has an order of its own"):
        assign(models, bases=[], plan="cross", ceilings={}, fair=True)
