"""Who has which texts: the customer, the attackers, and who asks in the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.experts.sentences.prepare import packaged_encoder
from experiments.experts.sentences.sentences import SentenceTask, read_tasks, task_files
from experiments.experts.split.customer import EncodedSentence, encode
from merging.checkpoints.checkpoint import Checkpoint
from merging.seeding import stable_seed


@dataclass(frozen=True)
class SplitData:
    """Where sentences and encoder come from, and how many of them there are.

    Args:
        data: directory with a folder for each task, see `experiments.experts.sentences`.
        task: the customer's.
        ordinary: tasks of the experts that the customer's is merged with.
        base: directory or Hugging Face id of an encoder or decoder; None: the one of the extra
            ``minilm``.
        customer: training sentences that the customer has.
        public: other training sentences, which attackers have; of the same source.
        test: report items that accuracy is measured on.
        max_length: most tokens of a sentence.
    """

    data: str | None
    task: str
    ordinary: Sequence[str]
    base: str | None
    customer: int
    public: int
    test: int
    max_length: int

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, the customer's first."""
        return (self.task, *self.ordinary)

    @property
    def source(self) -> str:
        """Directory or id of the encoder."""
        return str(packaged_encoder()) if self.base is None else self.base

    def files(self) -> dict[str, dict[str, Path]]:
        """Returns the files of all tasks; raises ValueError where one is missing."""
        return task_files(self.data, self.tasks)

    def sentences(self) -> SentenceTask:
        """Returns the customer's task; no text of any task is in two parts."""
        task = read_tasks(self.files(), seed=0)[0]
        needed, has = self.customer + self.public, len(task.train)
        if has < needed:
            raise ValueError(
                f"{self.task} has {has} training sentences, customer and public need {needed}: "
                "lower procedure.data.customer or procedure.data.public"
            )
        return task

    def texts(self, base: Checkpoint, seed: int) -> "SplitTexts":
        """Returns the texts of a seed, which says who has which of the training sentences."""
        tokenizer = base.tokenizer()
        if tokenizer is None:
            raise ValueError(f"base {base.source} brings no tokenizer: name one that does")
        task = self.sentences()
        drawn = sorted(task.train, key=lambda each: stable_seed(seed, "split", each.text))
        customer, rest = drawn[: self.customer], drawn[self.customer :]
        parts = (customer, rest[: self.public], task.held_out["report"][: self.test])
        encoded = [encode(tokenizer, part, self.max_length) for part in parts]
        return SplitTexts(
            encoded[0], encoded[1], encoded[2], task.classes, frozenset(tokenizer.all_special_ids)
        )


@dataclass(frozen=True)
class SplitTexts:
    """Tokens and labels; `everywhere` are tokens that every text has."""

    customer: list[EncodedSentence]
    public: list[EncodedSentence]
    test: list[EncodedSentence]
    classes: int
    everywhere: frozenset[int]
