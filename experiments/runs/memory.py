"""Memory of this process and of the machine: what is free, and the most that work holds."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

import torch

_MEMINFO, _OWN = Path("/proc/meminfo"), Path("/proc/self/statm")
_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_LIMITS = {  # of control groups, version 2 and 1: where, limit, use, prefix in memory.stat
    "": ("", "memory.max", "memory.current", ""),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
_EVERY_S = 0.01


def free_bytes(device: torch.device) -> int:
    """Returns the memory that is free on a device, of a CPU's what limits of jobs leave of it.

    Half of the machine's where nothing tells.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if _MEMINFO.exists():
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        free = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return min([1024 * int(free), *_left_to_groups()])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_to_groups() -> Iterator[int]:
    """Yields what the limits of the control groups that hold this process leave of memory."""
    lines = _GROUPS.read_text(encoding="utf-8").splitlines() if _GROUPS.exists() else []
    for _, kind, name in (line.split(":", 2) for line in lines):
        if kind in _LIMITS:
            mount, *names = _LIMITS[kind]
            group = _MOUNT / mount / name.lstrip("/")
            for folder in (group, *group.parents):  # a container may see the last alone
                with suppress(OSError, ValueError):  # not seen from here, or without a limit
                    yield _left(folder, *names)


def _left(group: Path, limit: str, used: str, prefix: str) -> int:
    """Returns limit - use + pages of files, which the system takes back when it needs them."""
    limit, used, stat = (
        (group / name).read_text(encoding="ascii") for name in (limit, used, "memory.stat")
    )
    held = dict(line.split() for line in stat.splitlines())
    files = sum(int(held[f"{prefix}{age}_file"]) for age in ("active", "inactive"))
    return max(0, int(limit) - int(used) + files)


class Peak:
    """The most memory held inside the context: of a CUDA device, else the process's own pages.

    Files that are mapped, such as weights that are being read, do not count: the system takes
    their pages back when it needs them.

    Attributes:
        bytes: the most seen; 0 where the system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._device = device
        self._ended = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        """Returns itself."""
        if self._device.type != "cuda" and _OWN.exists():
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops watching."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._device.type == "cuda":
            self.bytes = int(torch.cuda.max_memory_allocated(self._device))

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        with _OWN.open("rb", buffering=0) as statm:
            while not self._ended.wait(_EVERY_S):
                _, resident, shared, *_ = map(int, statm.read().split())
                statm.seek(0)
                self.bytes = max(self.bytes, page * (resident - shared))
