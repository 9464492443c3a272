"""A transformer in two halves: the bottom reads tokens, the top what the bottom hands on."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from merging.checkpoints.naming import listing
from merging.grouping import layer_of

_UNFIT = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError)
"""What a model raises of which a block is another than its place in the list."""


class Bottom:
    """Embeddings and the first blocks of an encoder or decoder, frozen: the customer's half.

    States are what the next block receives; with `blocks` = 0 that is the sum of word embeddings,
    positions and types where the model adds these up, normalised where it does that.

    Args:
        encoder: float32, in evaluation mode, without its head; it is left as it is.
        blocks: how many stay here, 0 to all.

    Raises:
        ValueError: the model cannot be cut there; says why.
    """

    def __init__(self, encoder: nn.Module, blocks: int) -> None:
        self.blocks = blocks
        self._seen: list[Tensor] = []
        self._encoder = _sharing(encoder)
        _cut(self._encoder, blocks, range(blocks, len(blocks_of(encoder)[1])), self._watch)
        self._words = _word_embeddings(self._encoder)

    @property
    def width(self) -> int:
        """Numbers of a token's state."""
        return int(self._encoder.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self._words.num_embeddings

    def words(self, tokens: Tensor) -> Tensor:
        """Returns ``(*tokens, d)`` float32: the word embeddings as the model looks them up."""
        with torch.no_grad():
            embeddings: Tensor = self._words(tokens)
        return embeddings

    def table(self) -> Tensor:
        """Returns ``(vocabulary, d)`` float32: every token's word embedding."""
        return self.words(torch.arange(self.vocabulary))

    def states(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns ``(texts, tokens, d)`` float32 of ``(texts, tokens)`` ids and 0/1 mask."""
        return self._run(mask, input_ids=tokens)

    def states_of(self, words: Tensor, mask: Tensor) -> Tensor:
        """Returns the states of word embeddings, ``(texts, tokens, d)``, instead of tokens.

        Gradients reach embeddings that ask for them: attackers descend along these.
        """
        return self._run(mask, inputs_embeds=words)

    def states_from(self, words: Tensor, mask: Tensor) -> Tensor:
        """As `states_of`, with a gradient for the words: for attackers."""
        self._encoder(attention_mask=mask, inputs_embeds=words)
        return self._seen.pop()

    def _run(self, mask: Tensor, **inputs: Tensor) -> Tensor:
        asked = any(given.requires_grad for given in inputs.values())
        with torch.set_grad_enabled(asked and torch.is_grad_enabled()):
            self._encoder(attention_mask=mask, **inputs)
        return self._seen.pop()

    def _watch(self, states: Tensor) -> Tensor:
        self._seen[:] = [states]
        return states


class Top(nn.Module):
    """The blocks behind a `Bottom` and the head, under the whole model's names.

    The whole model runs, its first blocks emptied, on tokens that say nothing but where a text
    ends; where the cut lies, the states take the place of what came of these. So masks, positions
    and the head are the model's own.

    Args:
        classifier: with a head over whole inputs; it is left as it is.
        blocks: how many stand in the bottom.

    Raises:
        ValueError: the model cannot be cut there; says why.
    """

    def __init__(self, classifier: Any, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.model: Any = _sharing(classifier)
        self._given: Tensor | None = None
        _cut(_encoder_of(self.model), blocks, range(blocks), self._give)
        pad = _padding(classifier)
        self._tokens = (pad, 1 if pad == 0 else 0)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Returns ``(texts, classes)`` logits.

        Args:
            states: ``(texts, tokens, d)`` of a bottom; padding stands right.
            mask: ``(texts, tokens)``, 1 for tokens.
        """
        self._given = states
        pad, other = self._tokens
        logits: Tensor = self.model(
            input_ids=torch.where(mask > 0, other, pad), attention_mask=mask
        ).logits
        return logits

    def _give(self, states: Tensor) -> Tensor:
        assert self._given is not None
        return self._given


def split(classifier: Any, blocks: int) -> tuple[Bottom, Top]:
    """Returns both halves, which share the model's tensors; together they are it, bit for bit.

    Checked on two short texts: a model whose later blocks read more of the tokens than the states
    tell (embeddings per layer) or of earlier blocks (one's position bias) is refused.

    Args:
        classifier: float32, in evaluation mode; it is left as it is.
        blocks: how many stand in the bottom, 0 to all.

    Raises:
        ValueError: the model cannot be cut there; says why.
    """
    bottom, top = Bottom(_encoder_of(classifier), blocks), Top(classifier, blocks)
    pad = _padding(classifier)
    tokens = torch.arange(2, 12).view(2, 5)
    tokens[tokens == pad] = 12
    tokens[1, 3:] = pad
    mask = (tokens != pad).long()
    with torch.no_grad():
        whole = classifier(input_ids=tokens, attention_mask=mask).logits
        try:
            states = bottom.states(tokens, mask)
            halves = top(states, mask)
        except _UNFIT as error:
            raise _unfit(classifier, blocks, str(error).splitlines()[0]) from error
    if states.shape != (*tokens.shape, bottom.width):
        shape = tuple(states.shape)
        raise _unfit(classifier, blocks, f"its states have shape {shape}, not (texts, tokens, d)")
    if not torch.equal(whole, halves):
        raise _unfit(classifier, blocks, "its halves do not compute what the whole does")
    return bottom, top


def blocks_of(encoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """Returns name and modules of the one list of blocks that a model runs through.

    Raises:
        ValueError: there is none, or there are several, or blocks are run more than once.
    """
    found = [layer_of(name) for name in encoder.state_dict()]
    stacks = list(dict.fromkeys(each[0] for each in found if each))
    kind = type(encoder).__name__
    if len(stacks) != 1:
        raise ValueError(
            f"{kind} cannot be split: it has {len(stacks)} lists of blocks "
            f"({listing(stacks) or 'none'}), expected one: take an encoder or a decoder"
        )
    blocks = encoder.get_submodule(stacks[0])
    config: Any = encoder.config
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != depth:
        raise ValueError(
            f"{kind} cannot be split: {stacks[0]} holds {len(blocks._modules)} blocks, its "
            f"configuration says {depth}: take a model that runs through its blocks once"
        )
    return stacks[0], blocks


def _encoder_of(classifier: Any) -> nn.Module:
    encoder: nn.Module = classifier.base_model
    if encoder is classifier:
        raise ValueError(
            f"{type(classifier).__name__} does not tell its encoder from its head "
            "(base_model_prefix), so it cannot be split"
        )
    return encoder


def _word_embeddings(encoder: Any) -> nn.Embedding:
    try:
        words = encoder.get_input_embeddings()
    except NotImplementedError:
        words = None
    if not isinstance(words, nn.Embedding):
        raise ValueError(
            f"{type(encoder).__name__} cannot be split: it has no table of word embeddings, so it "
            "reads no text"
        )
    return words


def _padding(classifier: Any) -> int:
    config = classifier.config.get_text_config()
    if config.pad_token_id is None:
        raise ValueError(
            f"{type(classifier).__name__} names no padding token: set pad_token_id in the base's "
            "config.json, for example to eos_token_id"
        )
    return int(config.pad_token_id)


def _sharing(model: nn.Module) -> nn.Module:
    """Returns a copy of the model's structure around the very tensors of `model`."""
    tensors = [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    copied.config.use_cache = False  # type: ignore[union-attr]
    return copied


def _cut(encoder: nn.Module, at: int, emptied: range, change: Callable[[Tensor], Tensor]) -> None:
    """Empties some blocks and lets `change` replace what is handed on before block `at`."""
    _, blocks = blocks_of(encoder)
    if not 0 <= at <= len(blocks):
        raise ValueError(
            f"blocks={at}: {type(encoder).__name__} has {len(blocks)}: give 0 to {len(blocks)}"
        )
    beside = _beside(encoder, blocks)
    for number in emptied:
        _empty(blocks[number], beside)

    def before(block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def behind(block: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    if at < len(blocks):
        blocks[at].register_forward_pre_hook(before, with_kwargs=True)
    else:
        blocks[-1].register_forward_hook(behind)


def _beside(encoder: nn.Module, blocks: nn.ModuleList) -> int | None:
    """Returns how many outputs a block has beside the states; None: it returns no tuple."""
    outputs: list[Any] = []
    hook = blocks[0].register_forward_hook(lambda block, args, output: outputs.append(output))
    with torch.no_grad():
        encoder(input_ids=torch.tensor([[2, 3]]), attention_mask=torch.ones(1, 2).long())
    hook.remove()
    return len(outputs[0]) - 1 if isinstance(outputs[0], tuple) else None


def _empty(block: nn.Module, beside: int | None) -> None:
    """Takes a block's weights away; it hands on what it receives. Its attributes stay."""
    for held in (block._modules, block._parameters, block._buffers):
        held.clear()

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return states if beside is None else (states, *([None] * beside))

    object.__setattr__(block, "forward", hand_on)


def _unfit(classifier: Any, blocks: int, why: str) -> ValueError:
    return ValueError(
        f"{type(classifier).__name__} cannot be split behind block {blocks} ({why}): take another "
        "number of blocks or another model"
    )
