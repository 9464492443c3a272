"""Points in processes of their own, a split and seed at a time; what is finished is kept."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from experiments import attacks
from experiments.experts import split
from experiments.papers.split_privatize.points import (
    NO_NOISE,
    FrontPoint,
    NoiseWay,
    SplitSetting,
    SplitSide,
)
from experiments.reports.table import duration
from experiments.runs.cache import digest_of
from experiments.runs.files import read_json
from experiments.runs.processes import process_pool
from merging.checkpoints.hashing import file_sha256
from merging.files import write_text

log = logging.getLogger(__name__)

_SPLIT = (
    "adapter.py",
    "contributing_tokens.py",
    "directions.py",
    "fitting.py",
    "halves.py",
    "metric_noise.py",
    "privatization.py",
    "vendor.py",
)
"""Code of a split that figures depend on."""


def planned(
    seeds: Sequence[int], depths: Mapping[int, int], ways: Mapping[str, NoiseWay]
) -> list[FrontPoint]:
    """Returns all points; those of a depth before those of the next, the unprotected first.

    Args:
        depths: blocks at the customer, to how many of the seeds are split there.
    """
    return [
        FrontPoint(seed, blocks, name, ratio)
        for blocks, split_by in depths.items()
        for number, seed in enumerate(seeds)
        for name, way in {NO_NOISE: NoiseWay([0.0]), **ways}.items()
        for ratio in way.ratios
        if number < min(split_by, way.seeds or split_by)
        and (way.depths is None or blocks in way.depths)
    ]


def identity(setting: SplitSetting, *more: Any) -> str:
    """Returns 16 hexadecimal digits of all that figures and experts depend on."""
    data = setting.data
    files = {t: {n: file_sha256(p) for n, p in of.items()} for t, of in data.files().items()}
    sizes = data.task, data.customer, data.public, data.test, data.max_length
    here, halves = Path(__file__).parent, Path(split.__path__[0])
    code = [here / name for name in ("attackers.py", "points.py", "texts.py")]
    code += [halves / name for name in _SPLIT] + list(Path(attacks.__path__[0]).glob("*.py"))
    content = [setting.base.sha256, files, sizes, setting.training, *more]
    return digest_of(content, sorted(code))


def run_points(
    setting: SplitSetting, points: Sequence[FrontPoint], workers: int, out: Path
) -> dict[FrontPoint, dict[str, Any]]:
    """Runs what is left of the points, each a file in `out`; returns all figures."""
    names = identities(setting, points)
    left: dict[tuple[int, int], list[FrontPoint]] = {}
    for point in unfinished(points, names, out):
        left.setdefault((point.seed, point.blocks), []).append(point)
    count = sum(map(len, left.values()))
    log.info("%d points, %d of them are finished", len(points), len(points) - count)
    if left:
        began = time.monotonic()
        with process_pool(workers, threads=1) as pool:
            futures = [pool.submit(_run, setting, some, names, out) for some in left.values()]
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    rest = (time.monotonic() - began) / done * (len(futures) - done)
                    log.info("%d/%d splits, about %s left", done, len(futures), duration(rest))
            finally:  # where one failed, or Ctrl-C: what waits is not begun
                for future in futures:
                    future.cancel()
    return {point: read_json(_file(point, out)) for point in points}


def identities(setting: SplitSetting, points: Sequence[FrontPoint]) -> dict[FrontPoint, str]:
    """Returns what the figures of each point depend on."""
    same = identity(setting, setting.attacks)
    ways = {**setting.ways, NO_NOISE: NoiseWay(())}
    return {
        point: f"{same} {ways[point.way].contributing} {ways[point.way].directions}"
        for point in points
    }


def unfinished(
    points: Sequence[FrontPoint], names: Mapping[FrontPoint, str], out: Path
) -> list[FrontPoint]:
    """Returns the points without figures of these very settings."""
    files = {point: _file(point, out) for point in points}
    return [
        point
        for point, file in files.items()
        if not file.exists() or read_json(file).get("identity") != names[point]
    ]


def _file(point: FrontPoint, out: Path) -> Path:
    return out / f"{point.name}.json"


def _run(
    setting: SplitSetting,
    points: Sequence[FrontPoint],
    names: Mapping[FrontPoint, str],
    out: Path,
) -> None:
    side = SplitSide(setting, points[0].seed, points[0].blocks)
    out.mkdir(parents=True, exist_ok=True)
    for point in points:
        began = time.monotonic()
        content = {"identity": names[point], **side.figures(point)}
        content["seconds"] = round(time.monotonic() - began, 1)
        write_text(_file(point, out), json.dumps(content, indent=1) + "\n")
