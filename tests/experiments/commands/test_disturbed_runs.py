"""No night is lost: whole runs, killed at random or on a full disk, end as undisturbed ones do."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.experiments.commands.disturbed import (
    CALLS,
    ERRORS,
    Fault,
    content,
    differences,
    events,
    finish,
    phase_of,
    printed,
    start,
    wait_for,
    was_hit,
)
from tests.experiments.local import overrides

PHASES = {"references", "search", "second look", "in-hull", "held-out"}
RAY = ["execution=ray", "execution.workers=2", "threads=1"]
STEADY = ["asynchronous=true", "strategy=de", "strategy.popsize=4"]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """One thread a process, as processes run beside each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        yield


def undisturbed(arguments: list[str], folder: Path) -> tuple[dict[str, bytes], int]:
    """Returns the content of a run, and in how many events it wrote that."""
    out = folder / "run"
    assert finish(arguments, out) == 0, printed(out)
    found = content(out), events(out)
    shutil.rmtree(out)
    return found


@pytest.mark.parametrize(
    ("options", "kills"),
    [
        pytest.param([], 5, id="a few"),
        pytest.param([], 50, id="generations", marks=pytest.mark.slow),
        pytest.param(STEADY, 30, id="steady", marks=pytest.mark.slow),
        pytest.param(RAY, 20, id="ray", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(
    world: Path, tmp_path: Path, options: list[str], kills: int
) -> None:
    """A SIGKILL at a random moment, ten or so of them from the first line to the last file."""
    arguments = overrides(world, *options)
    expected, last = undisturbed(arguments, tmp_path)
    chance, hit, ended, out = random.Random(20261130), Counter[str](), 0, tmp_path / "run"
    wanted = PHASES if kills >= 20 else set()
    while hit.total() < kills or (hit.total() < 5 * kills and not hit.keys() >= wanted):
        process = start(arguments, out)
        begun = events(out) if out.exists() else 0
        wait_for(process, out, begun + chance.randint(0, last // 5))
        process.join(chance.uniform(0, 0.03))
        if process.is_alive():
            process.kill()
            hit[phase_of(out)] += 1
        process.join()
        if process.exitcode == 0:
            assert not differences(content(out), expected)
            shutil.rmtree(out)
            ended += 1
        else:
            assert process.exitcode == -9, printed(out)
    if out.exists():
        assert finish(arguments, out) == 0, printed(out)
        assert not differences(content(out), expected)
        assert not [path for path in out.iterdir() if path.suffix in (".tmp", ".part")]
    print(f"killed {hit.total()} times ({dict(hit)}), {ended + 1} runs ended")
    assert hit.keys() >= wanted, "a phase in which nothing was killed"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80M", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    (disk / "run.log").symlink_to(tmp_path / "run.log")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Leaves not a byte free."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                pass


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_moment(world: Path, small_disk: Path) -> None:
    """The run ends with a sentence; once there is room it goes on as if nothing had been."""
    # Whole pages alone need room: of fewer candidates no file of the search fills one.
    arguments, out = overrides(world, "budget.evaluations=24"), small_disk / "run"
    expected, last = undisturbed(arguments, small_disk)
    hit = Counter[str]()
    for event in range(1, last, 5):
        process = start(arguments, out)
        wait_for(process, out, event)
        assert process.pid is not None
        with suppress(ProcessLookupError):  # it stands still while the disk is filled
            os.kill(process.pid, signal.SIGSTOP)
        fill(small_disk)
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.join()
        hit[phase_of(out)] += process.exitcode != 0
        assert process.exitcode in (0, 2), printed(out)
        assert "Traceback" not in printed(out), printed(out)
        (small_disk / "filler").unlink()
        assert finish(arguments, out) == 0, printed(out)
        assert not differences(content(out), expected)
        shutil.rmtree(out)
    print(f"full {hit.total()} times ({dict(hit)})")
    assert set(hit) >= PHASES, "a phase in which the disk was never full"


@pytest.mark.slow
@pytest.mark.parametrize("phase", sorted({*PHASES, "saving"}))
def test_faults_that_pass(world: Path, tmp_path: Path, phase: str) -> None:
    """Twenty in each phase: of memory, files, connections; some for one call, some to the end."""
    arguments, out = overrides(world), tmp_path / "run"
    expected, _ = undisturbed(arguments, tmp_path)
    chance, ended, hits = random.Random(phase), Counter[str](), 0
    while hits < 20:
        fault = Fault(
            call=chance.choice(sorted(CALLS)),
            phase=phase,
            first=chance.randint(0, 5),
            calls=chance.choice([1, 2, 3, 1_000_000]),
            error=chance.choice(sorted(ERRORS)),
        )
        code = finish(arguments, out, fault)
        if was_hit(out):
            hits += 1
            ended["went on" if code == 0 else "stopped"] += 1
        assert code in (0, 2), (fault, printed(out))
        assert "Traceback" not in printed(out), (fault, printed(out))
        assert finish(arguments, out) == 0, (fault, printed(out))
        assert not differences(content(out), expected), fault
        shutil.rmtree(out)
    print(f"{phase}: {dict(ended)}")
