"""As `racing_gain`, with three times as much text to search on: what racing gains grows with it.

    EVOMERGE_CACHE=DIR python -m experiments.benchmarks racing_gain_larger

The pieces of text are cut from the documents of the quickstart's search split, as those of the
quickstart are; selection and held-out items are the quickstart's. The rungs have as many items as
there, and there is one more.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.benchmarks.measured import Measured
from experiments.benchmarks.racing_gain import BAR, EVALUATIONS, Arm, rows
from experiments.experts.quickstart.corpus import read_domains, split_documents
from experiments.experts.quickstart.tasks import HeldOut, SplitSize, write_texts

_CHUNKS = 120


def measure() -> Iterator[Measured]:
    """Yields the row of successive halving."""
    usual = HeldOut().search
    held_out = HeldOut(search=SplitSize(usual.documents, _CHUNKS, usual.questions))
    counts = {split: size.documents for split, size in held_out.sizes().items()}
    domains = {
        name: split_documents(documents, domain=name, seed=0, held_out=counts)
        for name, documents in read_domains().items()
    }
    with tempfile.TemporaryDirectory() as folder:
        write_texts(domains, held_out, Path(folder), 0)
        data = [f"search_on.{name}.data={folder}/{name}.search.jsonl" for name in domains]
        halving = ("racing=halving", "racing.rungs=[0.0057,0.0173,0.0518,0.155,0.466]")
        items = len(domains) * _CHUNKS + len(domains) * usual.questions
        yield from rows(
            f"quickstart, {items} search items",
            data,
            [Arm("halving", halving, 3 * EVALUATIONS, BAR)],
        )
