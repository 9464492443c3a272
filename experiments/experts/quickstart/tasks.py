"""Held-out text as data files, and the multiple-choice task on it that lm-eval runs."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.experts.quickstart.corpus import Domain, choices, chunks
from experiments.runs.files import write_lines
from merging.seeding import stable_seed


@dataclass(frozen=True)
class SplitSize:
    """How many documents a split gets of each domain, and how much of them is asked."""

    documents: int
    chunks: int
    questions: int


@dataclass(frozen=True)
class HeldOut:
    """How held-out text is cut, and how much of it each split asks.

    A question is `context_bytes` and four answers of `continuation_bytes`.
    """

    search: SplitSize = SplitSize(documents=48, chunks=40, questions=30)
    selection: SplitSize = SplitSize(documents=48, chunks=60, questions=40)
    report: SplitSize = SplitSize(documents=60, chunks=80, questions=60)
    chunk_bytes: int = 127
    context_bytes: int = 24
    continuation_bytes: int = 8

    def sizes(self) -> dict[str, SplitSize]:
        """Returns split -> size, in the order of `EVALUATION_SPLITS`."""
        return {"search": self.search, "selection": self.selection, "report": self.report}


def write_texts(domains: Mapping[str, Domain], held_out: HeldOut, data: Path, seed: int) -> None:
    """Writes ``<domain>.<split>.jsonl`` with lines ``{"text": ...}``."""
    for split, size in held_out.sizes().items():
        for name, domain in domains.items():
            texts = chunks(
                domain.held_out[split],
                count=size.chunks,
                size=held_out.chunk_bytes,
                seed=stable_seed(seed, "chunks", name, split),
            )
            write_lines(data / f"{name}.{split}.jsonl", [{"text": text} for text in texts])


def write_choices(domains: Mapping[str, Domain], held_out: HeldOut, data: Path, seed: int) -> None:
    """Writes ``choice.<split>.jsonl``, the domains one after another."""
    for split, size in held_out.sizes().items():
        lines: list[dict[str, Any]] = []
        for name, domain in domains.items():
            questions = choices(
                domain.held_out[split],
                count=size.questions,
                context=held_out.context_bytes,
                continuation=held_out.continuation_bytes,
                seed=stable_seed(seed, "choices", name, split),
            )
            lines += [{"domain": name, **dataclasses.asdict(question)} for question in questions]
        write_lines(data / f"choice.{split}.jsonl", lines)


def write_tasks(tasks: Path, data: Path, splits: tuple[str, ...]) -> None:
    """Writes one lm-eval task ``quickstart_choice_<split>`` per split.

    The files of `data` stand in it by absolute path: lm-eval starts in the working directory.
    """
    for split in splits:
        name = f"quickstart_choice_{split}"
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data.resolve() / f"choice.{split}.jsonl")}
            },
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "target_delimiter": "",
            "num_fewshot": 0,
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                for metric in ("acc", "acc_norm")
            ],
            "metadata": {"version": 1.0},
        }
        (tasks / f"{name}.yaml").write_text(
            yaml.safe_dump(task, sort_keys=False), encoding="utf-8", newline="\n"
        )
