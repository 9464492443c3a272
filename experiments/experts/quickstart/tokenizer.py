"""A tokenizer whose tokens are bytes: nothing to train, nothing to download."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")
VOCABULARY_SIZE = len(SPECIAL) + 256


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per byte, without a beginning-of-text token of its own.

    Example:
        >>> tokenizer = byte_tokenizer(256)
        >>> tokenizer.decode(tokenizer("a b")["input_ids"])
        'a b'
    """
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, start, end = SPECIAL
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
