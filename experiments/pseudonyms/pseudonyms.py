"""Pseudonyms: identifiers replaced by keyed slugs, alike everywhere, so that equality survives."""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluators.memorization.canaries import Canary

_KIND = re.compile(r"[A-Z][A-Z0-9_]*")
_LEAST_KEY_BYTES = 16
_MOST_DIGITS = 64  # of SHA-256


class SecretKey:
    """A key of 16 bytes or more, which neither `repr` nor `str` nor any message here shows."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) < _LEAST_KEY_BYTES:
            raise ValueError(
                f"the key has fewer than {_LEAST_KEY_BYTES} bytes, so that it could be "
                "found by trying; make one with: openssl rand -hex 32"
            )
        self._key = key

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not to be written anywhere")

    def digest(self, message: str) -> str:
        """Returns HMAC-SHA256 of `message` under the key, 64 hexadecimal digits."""
        content = message.encode("utf-8", "surrogatepass")
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()


class Pseudonyms:
    """Slugs ``[TYPE_xxxxxxxx]``; x are the first digits of HMAC-SHA256(key, "TYPE:value").

    The same key gives the same slug to the same type and value everywhere, so that equality and
    joins survive; whoever lacks the key can neither turn a slug back nor try values.

    Args:
        digits: hexadecimal digits of a slug, 1 to 64. With 8 of them two of 10,000 values
            share a slug with a chance of about 1 %, which is then refused.
        claim: given a slug and a digest of the value that it is to stand for, returns the digest
            of the one that had it first; None: first in this object, see also `register`.

    Source: Decomposing Memorization Reduction in Privacy-Preserving Fine-Tuning of SLMs for
        CSIRTs, arXiv 2606.28479, its attack script. Values are taken as they are, without
        normalisation.
    """

    def __init__(
        self,
        secret: SecretKey,
        *,
        digits: int = 8,
        claim: Callable[[str, str], str] | None = None,
    ) -> None:
        if not 1 <= digits <= _MOST_DIGITS:
            raise ValueError(f"digits must be 1 to {_MOST_DIGITS}, got {digits}")
        self._secret, self._digits = secret, digits
        self._claim = claim or dict[str, str]().setdefault

    def slug(self, kind: str, value: str) -> str:
        """Returns the slug of a value of a type such as ``IP_ADDRESS``.

        ValueError, naming no value: not such a type, or the slug already stands for another value.
        """
        if not _KIND.fullmatch(kind):
            raise ValueError(
                f"type {kind!r} must be of capital letters, digits and _, such as IP_ADDRESS"
            )
        digest = self._secret.digest(f"{kind}:{value}")
        slug = f"[{kind}_{digest[: self._digits]}]"
        if self._claim(slug, digest) != digest:
            raise ValueError(
                f"two values of type {kind} have the slug {slug}: take more than {self._digits} "
                "digits, for all data under this key"
            )
        return slug

    def record(self, record: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
        """Returns a copy of a record with slugs in the named fields.

        Args:
            fields: path of a field to the type of its values. A path names keys from the outside
                in, ``asset.network.mac``; a key may itself have dots. Lists on the way and at the
                end are entered: every text in them is replaced. null and "" stay. ValueError: a
                named field holds a number, true, false or an object.
        """
        return dict(_rewritten(record, fields, "", self.slug, _same))

    def records(
        self,
        records: Sequence[Mapping[str, Any]],
        fields: Mapping[str, str],
        *,
        everywhere: bool = False,
    ) -> list[dict[str, Any]]:
        """Returns all records with slugs in the named fields.

        Args:
            fields: as for `record`; the order says which type a value gets in other texts, if
                fields of two types hold it.
            everywhere: also replace these values wherever they stand in other texts of any
                record, between characters that are no letter, digit or ``_``; the longest first.
                Spelling counts: ``Host`` is not ``host``. Keys of objects stay as they are.

        Raises:
            ValueError: as `record`; or no record has a named field, whose values would stay as
                they are if the path is misspelt.
        """
        slugs: dict[str, str] = {}

        def collect(kind: str, value: str) -> str:
            return slugs.setdefault(value, self.slug(kind, value))

        for path, kind in fields.items():
            if not sum(_count(record, {path: kind}, collect) for record in records):
                raise ValueError(
                    f"no record holds a text at {path!r}: correct the path, or leave it out; a "
                    "misspelt one would leave its values as they are"
                )
        other = _Occurrences(slugs).replace if everywhere else _same
        return [dict(_rewritten(record, fields, "", self.slug, other)) for record in records]


def slugged(canaries: Sequence[Canary], pseudonyms: Pseudonyms) -> list[Canary]:
    """Returns canaries whose planted values and variants are slugs: the second attack's data.

    The first attack is the canaries as they are, asked of a model that was trained on slugs. The
    text around the values stays as it is in both: it should be a record as that model read it.
    ValueError: a canary without a kind; all are attacked or none, as a class that is left out
    without a word halves the evidence.
    """
    return [_slugged(canary, pseudonyms) for canary in canaries]


def _slugged(canary: Canary, pseudonyms: Pseudonyms) -> Canary:
    if not canary.kind:
        raise ValueError(
            f"canary {canary.name!r} has no kind, so that its slug is unknown: give every canary "
            "the type of its field"
        )
    value, *variants = (pseudonyms.slug(canary.kind, text) for text in canary.candidates)
    return replace(
        canary,
        text=canary.record(value),
        end=canary.start + len(value),
        variants=tuple(variants),
    )


def _same(text: str) -> str:
    return text


def _count(
    record: Mapping[str, Any], fields: Mapping[str, str], collect: Callable[[str, str], str]
) -> int:
    """Hands every text at `fields` to `collect`; returns how many there are."""
    collected = []

    def mapped(kind: str, value: str) -> str:
        collected.append(collect(kind, value))
        return value

    _rewritten(record, fields, "", mapped, _same)
    return len(collected)


def _rewritten(
    node: Any,
    fields: Mapping[str, str],
    where: str,
    mapped: Callable[[str, str], str],
    other: Callable[[str], str],
) -> Any:
    """Returns a copy of a JSON value with changed texts.

    Args:
        fields: rest of every path that leads into `node`, to its type; "" is `node` itself.
        mapped: given type and text, returns what stands there instead.
        other: the same for texts at no path.
    """
    if isinstance(node, list):
        return [_rewritten(item, fields, where, mapped, other) for item in node]
    if "" in fields:
        return _target(node, fields[""], where, mapped)
    if isinstance(node, str):
        return other(node)
    if not isinstance(node, Mapping):
        return node
    return {
        key: _rewritten(item, _inside(fields, key), f"{where}.{key}".lstrip("."), mapped, other)
        for key, item in node.items()
    }


def _target(node: Any, kind: str, where: str, mapped: Callable[[str, str], str]) -> Any:
    if node is None or node == "":
        return node
    if not isinstance(node, str):
        raise ValueError(
            f"field {where!r} holds {type(node).__name__}, pseudonyms are made of texts: name the "
            "fields in it, or leave it out"
        )
    return mapped(kind, node)


def _inside(fields: Mapping[str, str], key: str) -> dict[str, str]:
    """Returns the rest of every path that begins with `key`."""
    inside = {p[len(key) + 1 :]: kind for p, kind in fields.items() if p.startswith(f"{key}.")}
    return inside | ({"": fields[key]} if key in fields else {})


class _Occurrences:
    """Finds known values in running text, the longest first, in one pass."""

    def __init__(self, slugs: Mapping[str, str]) -> None:
        self._slugs = slugs
        self._lengths: dict[str, list[int]] = {}  # first character -> lengths, descending
        for first in {value[0] for value in slugs}:
            lengths = {len(value) for value in slugs if value[0] == first}
            self._lengths[first] = sorted(lengths, reverse=True)

    def replace(self, text: str) -> str:
        """Returns `text` with every value's occurrence replaced."""
        parts: list[str] = []
        at = done = 0
        while at < len(text):
            length = self._length_at(text, at)
            if length:
                parts += [text[done:at], self._slugs[text[at : at + length]]]
                done = at + length
            at += length or 1
        return "".join([*parts, text[done:]])

    def _length_at(self, text: str, at: int) -> int:
        """Returns the length of the longest value that starts at `at`; 0: none."""
        lengths = self._lengths.get(text[at])
        if lengths is None or not _ends_word(text, at):
            return 0
        for length in lengths:
            if text[at : at + length] in self._slugs and _ends_word(text, at + length):
                return length
        return 0


def _ends_word(text: str, at: int) -> bool:
    """Says whether no word goes on from before `at` to behind it."""
    return not (0 < at < len(text) and _in_word(text[at - 1]) and _in_word(text[at]))


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"
