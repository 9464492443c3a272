"""The customer: texts become states here, are made private here, and never leave otherwise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from experiments.experts.sentences.sentences import Sentence
from experiments.experts.split.halves import Bottom
from experiments.experts.split.states import StateFolder, States


class Privatizer(Protocol):
    """Noise on an example's vectors, the same whenever it is asked again."""

    def privatize(
        self, states: Tensor, tokens: Tensor, example: str, label: int | None = None
    ) -> Tensor:
        """Returns ``(T, d)`` noised vectors of ``(T, d)`` vectors and ``(T,)`` token ids."""
        ...


@dataclass(frozen=True)
class EncodedSentence:
    """Tokens of a text, at least one, and its class; None: it is asked for."""

    tokens: tuple[int, ...]
    label: int | None


@dataclass(frozen=True)
class Customer:
    """The bottom of a model, and the noise on what leaves it.

    Args:
        privatizer: None: states leave as they are.
        where: what is noised: word embeddings, in front of positions and blocks, or the states.
    """

    bottom: Bottom
    privatizer: Privatizer | None
    where: Literal["embedding", "states"] = "states"

    def states(self, example: EncodedSentence, name: str) -> Tensor:
        """Returns ``(T, d)`` float32: what may leave of an example.

        One at a time, so that its bits do not depend on others.

        Args:
            name: of no other example.
        """
        tokens = torch.tensor(example.tokens)
        mask = torch.ones(1, len(tokens), dtype=torch.int64)
        if self.privatizer is None:
            return self.bottom.states(tokens[None], mask)[0]
        if self.where == "embedding":
            words = self.bottom.words(tokens)
            noised = self.privatizer.privatize(words, tokens, name, example.label)
            return self.bottom.states_of(noised[None], mask)[0]
        states = self.bottom.states(tokens[None], mask)[0]
        return self.privatizer.privatize(states, tokens, name, example.label)

    def fill(
        self,
        folder: StateFolder,
        examples: Sequence[EncodedSentence],
        name: str,
        *,
        together: int,
        on_examples: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Writes what may leave of the examples that the folder does not hold yet, in order.

        Before anything is sent: what is drawn once is what is sent, however often.

        Args:
            name: of the examples, before their number.
            together: examples of a batch, which is a message.
            on_examples: called with the number of examples that were added.
        """
        for start in range(len(folder), len(examples), together):
            batch = examples[start : start + together]
            rows = [self.states(each, f"{name} {start + i}") for i, each in enumerate(batch)]
            labels = [each.label for each in batch if each.label is not None]
            folder.append(States.of(rows, labels or None))
            on_examples(len(batch))


def encode(tokenizer: Any, sentences: Sequence[Sentence], length: int) -> list[EncodedSentence]:
    """Returns the examples of sentences; tokens beyond `length` are cut off.

    Raises ValueError: a sentence has no tokens.
    """
    examples = []
    for sentence in sentences:
        tokens = tokenizer(sentence.text, truncation=True, max_length=length)["input_ids"]
        if not tokens:
            raise ValueError(f"the sentence {sentence.text!r:.60} has no tokens: leave it out")
        examples.append(EncodedSentence(tuple(tokens), sentence.label))
    return examples
