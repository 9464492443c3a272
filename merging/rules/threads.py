"""One thread for what gives other bits with several: decompositions of matrices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch use one thread on the CPU, and as many as before afterwards.

    LAPACK cuts singular value, QR and Cholesky decompositions into as many pieces as there are
    threads, and each cut rounds differently; a recipe has to give the same bits everywhere.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
