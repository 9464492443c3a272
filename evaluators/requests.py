"""What an evaluator may ask of a model, and what the engine answers; tokenised once per run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluators.sentences import SentenceModules

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class EvaluationError(RuntimeError):
    """A model that cannot be scored, now and ever; the loop records the message as the failure."""


class TransientFailure(RuntimeError):  # noqa: N818
    """A model that could not be scored for a reason outside of it: memory, server, time, files.

    It says nothing of the model, so nobody writes it down: who waits for a score asks again, see
    `evaluators.tries`.
    """


@dataclass(frozen=True)
class Media:
    """What a model reads beside tokens: images, or a sound.

    Args:
        digest: of its content, equal on every machine; equal ones are taken to be the same.
        inputs: model inputs of a batch of one, as the model's processor gives them. Those of
            integers of as many columns as context and continuation together go with the tokens.
    """

    digest: str
    inputs: Mapping[str, Tensor] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Loglikelihood:
    """How likely is `continuation` after `context`?

    Args:
        context: token ids, at least one; of an encoder-decoder the encoder reads them.
        continuation: token ids, at least one. A context too long for the model loses its left end.
        media: what the model reads too. The encoder of an encoder-decoder reads it instead of the
            context, with which then the decoder begins.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    media: Media | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Generate:
    """Continue a prompt.

    Args:
        prompt: token ids; a prompt too long for the model loses its left end.
        stop: texts that end the answer; they are cut off.
        temperature: 0: greedy.
        top_p: nucleus; 1: off. Read only where `temperature` is above 0 and `options` are None.
        seed: of the sampling; read only where `temperature` is above 0.
        options: of transformers' generate, by name, on top of the generation config that comes
            with the model, which then holds as well. None: neither, but for the tokens that end.
        media: see `Loglikelihood`.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    options: tuple[tuple[str, bool | int | float | str | None], ...] | None = None
    media: Media | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Classify:
    """Class logits for one input.

    Args:
        head: name of the expert whose classification head reads the shared encoder.
        inputs: model inputs of one item without batch dimension, for example ``input_ids``
            ``(tokens,)`` int64, or ``pixel_values`` ``(channels, height, width)`` float32.
        positions: tokens of the item that are classified one by one, by heads over tokens; None:
            the item is, as a whole.
    """

    head: str
    inputs: Mapping[str, Tensor]
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Gallery:
    """What inputs are compared with, the same object for all that are compared with it.

    Args:
        inputs: model inputs without batch dimension; equal objects are embedded once.
        sizes: how many of `inputs`, one behind the other, each entry is the mean direction of;
            None: each is an entry.
    """

    inputs: tuple[Mapping[str, Tensor], ...]
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """How close is one input to every entry of a gallery?

    Args:
        inputs: model inputs without batch dimension.
        modules: what makes vectors of hidden states, and a similarity of vectors; None: the
            model's own embeddings and logits of images and texts.
    """

    inputs: Mapping[str, Tensor]
    gallery: Gallery
    modules: SentenceModules | None = None

    @property
    def entries(self) -> int:
        """How many there are to compare with."""
        return len(self.gallery.sizes or self.gallery.inputs)


@dataclass(frozen=True)
class TokenStatistics:
    """How likely is each token of a text, and how likely are tokens there on average?

    Args:
        tokens: token ids, at least two; the first is only read. They must fit into the model.
    """

    tokens: tuple[int, ...]


Request: TypeAlias = Loglikelihood | Generate | Classify | Match | TokenStatistics


@dataclass(frozen=True)
class Likelihood:
    """Answer to `Loglikelihood`.

    Args:
        total: sum of the natural-log probabilities of the continuation's tokens.
        greedy: whether greedy decoding would give exactly the continuation.
    """

    total: float
    greedy: bool


@dataclass(frozen=True)
class Generated:
    """Answer to `Generate`: the text after the prompt, up to the first stop text.

    Args:
        cut_off: whether it ended at its most tokens, before an end token or stop text; None: what
            serves the model does not say.
    """

    text: str
    cut_off: bool | None = None


@dataclass(frozen=True, eq=False)
class Classified:
    """Answer to `Classify`.

    Args:
        logits: ``(classes,)`` float64; of tokens ``(positions, classes)``. Heads that look for a
            span give two, whether it starts there and whether it ends there.
    """

    logits: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matched:
    """Answer to `Match`: ``(entries,)`` float64, higher for closer ones."""

    similarities: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PerToken:
    """Answer to `TokenStatistics`: a number for each token but the first, in nats.

    Args:
        log_probs: ``(tokens - 1,)`` float64, log p(token | those before it).
        means: ``(tokens - 1,)`` float64, ``mu = sum_z p(z) log p(z)`` over the vocabulary.
        deviations: ``(tokens - 1,)`` float64, ``sqrt(sum_z p(z) (log p(z) - mu)^2)``.
    """

    log_probs: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]
    deviations: npt.NDArray[np.float64]


Response: TypeAlias = Likelihood | Generated | Classified | Matched | PerToken


def totals_of(responses: Sequence[Response]) -> npt.NDArray[np.float64]:
    """Returns the summed log-probabilities ``(requests,)`` of answers to `Loglikelihood`."""
    totals = [response.total for response in responses if isinstance(response, Likelihood)]
    return np.array(totals, dtype=np.float64)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class of its own; CPU and MPS raise a plain RuntimeError with a text."""
    of_class = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    return of_class or any(text in str(error).lower() for text in _OUT_OF_MEMORY)
