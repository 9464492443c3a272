"""The machine that numbers were made on, in one line."""

import os
import platform
from pathlib import Path

from experiments.runs.directory import environment


def machine() -> str:
    """Returns processor, cores, memory and versions."""
    known = environment()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{_processor()}, {known['cores']} cores, {memory:.0f} GB, {platform.system()}, Python "
        f"{known['python']}, torch {known['packages']['torch']}, transformers "
        f"{known['packages']['transformers']}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
