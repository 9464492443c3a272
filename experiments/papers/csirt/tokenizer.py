"""Bytes, with one token for each key of a record and each word of its texts."""

from transformers import PreTrainedTokenizerFast

from experiments.experts.quickstart.tokenizer import byte_tokenizer
from experiments.papers.csirt.catalogue import words
from experiments.papers.csirt.records import skeleton

_SLUGS = ("[IP_ADDRESS_", "[HOSTNAME_", "[MAC_ADDRESS_")


def record_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that spends its tokens on the values, which are read byte by byte.

    No value contains a space or a key, so that equal formats have equal numbers of tokens.
    """
    tokenizer = byte_tokenizer(max_length)
    tokenizer.add_tokens([*skeleton(), *_SLUGS, *words()])
    return tokenizer
