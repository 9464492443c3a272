"""The history's bytes, and what a reader makes of a writer that was killed at any byte."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from search.loop import jsonl
from search.loop.history import History, Record


def records() -> list[Record]:
    return [
        Record(0, [0.1, 2.0], {"a/x": 1.5}, np.array([0.1 + 0.2]), cases=np.array([1 / 3, 0.0])),
        Record(1, [0.5, 2.0], {"a/x": math.nan}, None, failure="a/x is nan", seconds=0.25),
        Record(2, [0.1, 2.0], {"a/x": 1.5}, np.array([0.1 + 0.2]), same_as=0),
        Record(3, [0.7, 1.0], {}, None, failure="out of memory: €"),
        Record(4, [0.9, 1.0], {"a/x": 2.5}, np.array([0.25]), cases=np.array([0.5, 0.5])),
    ]


def write(directory: Path, some: list[Record]) -> None:
    history = History(directory)
    for record in some:
        history.append(record)


def content(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in ("history.jsonl", "cases.jsonl")}


def test_lines_are_as_documented(tmp_path: Path) -> None:
    write(tmp_path, records()[:3])
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "id": 0,
        "genome": [0.1, 2.0],
        "scores": {"a/x": 1.5},
        "fitness": [0.1 + 0.2],
        "failure": None,
        "same_as": None,
    }
    assert lines[1]["scores"] == {"a/x": None}
    assert lines[1]["failure"] == "a/x is nan"
    assert lines[2]["same_as"] == 0
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [line["id"] for line in timing] == [0, 1]
    assert set(timing[0]) == {"id", "seconds", "at"}
    cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert cases == [{"id": 0, "cases": [1 / 3, 0.0]}]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write(tmp_path, records())
    found = History(tmp_path).records
    assert list(found) == [0, 1, 2, 3, 4]
    for record in records():
        again = found[record.id]
        assert (again.genome, again.failure, again.same_as) == (
            record.genome,
            record.failure,
            record.same_as,
        )
        assert again.seconds == record.seconds
        np.testing.assert_equal(dict(again.scores), dict(record.scores))
        np.testing.assert_equal(again.fitness, record.fitness)
    np.testing.assert_equal(found[2].cases, records()[0].cases)
    assert found[3].cases is None


def test_a_writer_killed_at_any_byte_loses_at_most_the_last_record(tmp_path: Path) -> None:
    """All states that a kill can leave: cases are appended to first, then timing, then history."""
    whole, before = tmp_path / "whole", tmp_path / "before"
    for directory in (whole, before):
        directory.mkdir()
    write(whole, records())
    write(before, records()[:-1])
    expected = content(whole)
    order = ["cases.jsonl", "timing.jsonl", "history.jsonl"]
    full = {name: (whole / name).read_bytes() for name in order}
    start = {name: (before / name).read_bytes() for name in order}
    start["timing.jsonl"] = b"".join(full["timing.jsonl"].splitlines(keepends=True)[:-1])
    state, states = dict(start), []
    for name in order:
        for size in range(len(start[name]), len(full[name])):
            states.append({**state, name: full[name][:size]})
        state[name] = full[name]
    for number, files in enumerate(states):
        directory = tmp_path / str(number)
        directory.mkdir()
        for name, data in files.items():
            (directory / name).write_bytes(data)
        history = History(directory)
        assert list(history.records) == [0, 1, 2, 3]
        history.append(records()[-1])
        assert content(directory) == expected
        assert len((directory / "timing.jsonl").read_bytes().splitlines()) == 4


def test_an_empty_or_new_directory_has_no_records(tmp_path: Path) -> None:
    assert not History(tmp_path).records
    (tmp_path / "history.jsonl").write_bytes(b'{"id": 0, "gen')
    assert not History(tmp_path).records
    assert (tmp_path / "history.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", "history.jsonl, line 2 is not JSON .*restore the file"),
        (b"\0\0\0", "history.jsonl, line 2 is not JSON"),
        (b"\xff\xfe", "history.jsonl, line 2 is not JSON"),
        (b"[1]", "history.jsonl, line 2 has no integer 'id'"),
        (b'{"id": 1}', r"history.jsonl, line 2 lacks \['genome', 'scores'"),
    ],
)
def test_a_corrupt_line_in_the_middle_is_refused_by_number(
    tmp_path: Path, line: bytes, message: str
) -> None:
    write(tmp_path, records())
    path = tmp_path / "history.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]) + b"\n")
    with pytest.raises(ValueError, match=message):
        History(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path, records())
    path = tmp_path / "history.jsonl"
    lines = path.read_bytes()
    path.write_bytes(lines + lines.splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match=r"history.jsonl, line 6 repeats id 0"):
        History(tmp_path)
    path.write_bytes(lines)
    (tmp_path / "timing.jsonl").unlink()
    with pytest.raises(ValueError, match=r"timing.jsonl lacks ids \[0, 1, 3, 4\] that history"):
        History(tmp_path)


def test_lost_cases_are_refused(tmp_path: Path) -> None:
    write(tmp_path, records())
    jsonl.keep_first(tmp_path / "cases.jsonl", 1)
    with pytest.raises(ValueError, match=r"cases.jsonl lacks ids \[4\]"):
        History(tmp_path)


def test_an_id_is_written_once(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(records()[0])
    with pytest.raises(ValueError, match=r"history\.jsonl already holds candidate 0"):
        history.append(records()[0])


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path)
    history.append(records()[0])
    before = (tmp_path / "history.jsonl").read_bytes()
    write_all = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write_all(fd, data[:7]))
    with pytest.raises(OSError, match=r"timing.jsonl: only 7 of \d+ bytes fit; free some space"):
        history.append(records()[1])
    monkeypatch.undo()
    assert (tmp_path / "history.jsonl").read_bytes() == before
    assert list(History(tmp_path).records) == [0]
    history.append(records()[1])
    assert list(History(tmp_path).records) == [0, 1]
