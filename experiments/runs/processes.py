"""Processes and threads of this program."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch


def process_pool(workers: int, *, threads: int | None = None) -> ProcessPoolExecutor:
    """Returns a pool of fresh processes that end as soon as this one is gone, however it ends.

    Args:
        workers: processes at a time.
        threads: of torch in each; None: its own choice.
    """
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(), threads),
    )


def _start(parent: int, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Lets torch use `count` threads meanwhile; None: as many as it uses now."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
