"""Anonymous memory of whole merges at three sizes with one largest tensor, beside mergekit's."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from experiments.benchmarks.measured import Measured
from experiments.benchmarks.merge_speed import PYTHON
from experiments.benchmarks.whole_commands import LARGE, QUIET, Home, made

SIZES = {"100M": 3, "398M": 27, "1.2B": 91}  # layers


def measure() -> Iterable[Measured]:
    """Yields the rows; see `experiments.benchmarks`."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _memory(Path(folder))


def _memory(folder: Path) -> Iterator[Measured]:
    """Yields the peaks of three sizes; each beside mergekit's, the largest beside the smallest."""
    peaks = {}
    for name, layers in SIZES.items():
        home = made(folder / name, {**LARGE, "layers": layers})
        home.merge("linear")  # hashes are known then
        peaks[name] = _peak_bytes(home.ours("linear"), home) / 1e6
        what, against = f"anonymous memory of a linear merge, {name}", "`mergekit-yaml`"
        if PYTHON in os.environ:
            other = _peak_bytes(home.theirs("linear"), home) / 1e6
            ratio = peaks[name] / other
            yield Measured(what, peaks[name], other, against, "MB", ratio, 1, at_most=True)
        shutil.rmtree(home.folder)
    least, most = min(peaks.values()), max(peaks.values())
    what = f"the same, most of {', '.join(peaks)}"
    yield Measured(what, most, least, "the least", "MB", most / least, 1.1, at_most=True)


def _peak_bytes(command: Sequence[str], home: Home) -> int:
    """Returns the most of a process's own pages, seen a hundred times a second."""
    peak = 0
    with subprocess.Popen(command, env=home.environment(), **QUIET) as process:
        statm = Path(f"/proc/{process.pid}/statm")
        while process.poll() is None:
            _, resident, shared, *_ = map(int, statm.read_text(encoding="ascii").split())
            peak = max(peak, resident - shared)
            time.sleep(0.01)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    shutil.rmtree(home.folder / "out", ignore_errors=True)
    return peak * os.sysconf("SC_PAGE_SIZE")
