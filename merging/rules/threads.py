"""One thread for what gives other bits with several: sums, products, decompositions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch use one thread on the CPU, and as many as before afterwards; decorates, too.

    torch adds up in as many parts as there are threads, BLAS cuts matrix products (of any inner
    dimension) and LAPACK decompositions likewise, functions such as the power round otherwise at
    the end of a part; a recipe has to give the same bits everywhere. Addition, multiplication
    and comparison of entries do not depend on it: `merging.rules.blocks` uses all threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
