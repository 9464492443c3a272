"""What several runs on one data set add up to: one file of all of them."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.runs.errors import UserError
from experiments.runs.starts import (
    PUBLIC_NOISE,
    beside_others,
    check_starts,
    others,
    others_in_words,
    starts_file,
    write_start,
)
from merging.checkpoints.mechanisms import GaussianMechanism, RandomSelection
from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy.composition import Price, add
from merging.privacy.ledger import Ledger


def write(name: str) -> None:
    for number in range(40):
        run = name if number % 2 else "shared"
        write_start("letters", f"{run} {number}", Price(0.5, 1e-6), Path())


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_processes_write_at_once_and_a_killed_one_hurts_nobody(state: Path) -> None:
    write_start("letters", "search 1", Price(1.0, 1e-6), Path())
    with starts_file().open("a") as file:
        file.write('{"dataset": "letters", "release": "search 2", "eps')  # power failed here
    forking = multiprocessing.get_context("fork")
    writers = [forking.Process(target=write, args=(name,)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    lines = [json.loads(line) for line in starts_file().read_text().splitlines()]
    assert len({line["release"] for line in lines}) == len(lines) == 1 + 20 + 2 * 20
    total = add(others("letters", {"search 1"}))
    assert total == Price(60 * 0.5, pytest.approx(60e-6))
    assert state.is_dir()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=12))
def test_each_release_counts_once_and_ones_own_does_not(starts: list[tuple[str, int]]) -> None:
    starts_file().unlink(missing_ok=True)
    for dataset, number in starts:
        write_start(dataset, f"{dataset} {number}", Price(1.0, 1e-6), Path())
    counted = {number for name, number in starts if name == "a"}
    assert len(others("a", {})) == len(counted)
    assert len(others("a", {"a 0"})) == len(counted - {0})


def test_the_words_of_a_ledger() -> None:
    spend = PrivacySpend("letters", 3.0, 1e-5, "rdp", "1", release="search 1")
    write_start("letters", "search 1", Price(4.0, 1e-5), Path())
    alone = "This is of this search alone; no other run on letters is known here."
    assert beside_others(Ledger().add(spend), "search").sentences()[-1] == alone
    for number in (2, 3):
        write_start("letters", f"search {number}", Price(3.4, 1e-5), Path())
    ledger = beside_others(Ledger().add(spend), "search")
    words = (
        "This is of this search alone; 2 other runs on letters, kept or thrown away, add up to "
        "(ε, δ) = (6.8, 2e-05)."
    )
    assert ledger.sentences()[-1] == words
    assert Ledger.from_description(ledger.describe()).sentences()[-1] == words
    assert beside_others(Ledger(), "merge").sentences() == Ledger().sentences()
    assert others_in_words("letters", {"search 2", "search 3"}).startswith(
        "1 other run on letters"
    )


def test_what_promises_nothing_leaves_no_guarantee_and_says_why() -> None:
    write_start("letters", "search 1", Price(3.0, 1e-5), Path())
    write_start("letters", "search 2", Price(1.0, 1e-5), Path(), void=PUBLIC_NOISE)
    assert json.loads(starts_file().read_text().splitlines()[1])["epsilon"] is None
    assert add(others("letters", {})).vacuous
    spend = PrivacySpend("letters", 3.0, 1e-5, "rdp", "1", release="search 1")
    assert beside_others(Ledger().add(spend), "search").sentences()[-1] == (
        "This is of this search alone; 1 other run on letters, kept or thrown away, leaves no "
        "guarantee (epsilon is infinite): whoever knows its public seed can subtract the noise."
    )
    assert others_in_words("letters", {"search 2"}).endswith("adds (ε, δ) = (3, 1e-05)")


@pytest.mark.parametrize(("chances", "told"), [((1.0,), "no other"), ((0.5, 0.5), "1 other")])
def test_what_a_merge_is_for_certain_of_is_no_other_run(
    chances: tuple[float, ...], told: str
) -> None:
    starts_file().unlink(missing_ok=True)
    write_start("letters", "training 1", Price(4.0, 1e-5), Path())
    options = tuple((GaussianMechanism(float(i + 1)),) for i in range(len(chances)))
    releases = tuple((f"training {i + 1}",) for i in range(len(chances)))
    drawn = (RandomSelection(chances, options, releases),)
    spend = PrivacySpend("letters", 3.0, 1e-5, "rdp", "1", mechanisms=drawn, release="dial")
    assert f"{told} run on letters" in beside_others(Ledger().add(spend), "merge").sentences()[-1]


def test_a_file_that_cannot_be_used_is_told_before_the_work(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.mkdir()
    for line in ("no json", '{"dataset": "letters", "release": "search 1", "delta": 0.1}'):
        starts_file().write_text(line + "\n")
        with pytest.raises(UserError, match=r"is damaged .*: restore it from a copy"):
            check_starts()
    monkeypatch.setenv("EVOMERGE_STATE", str(starts_file()))
    with pytest.raises(UserError, match=r"cannot be written .*: set EVOMERGE_STATE"):
        check_starts()
