"""Do base and expert mean the same by their inputs? Their small files are compared."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from merging.checkpoints.naming import listing
from merging.checkpoints.sources import modules

# Padding is left out: fine-tuning often needs a token for it, and no weight reads it.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_SETTINGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "do_lower_case")
_IMAGES = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
_CLASSES = ("image_processor_type", "feature_extractor_type", "processor_class")


def differences(base: Path, expert: Path, common: Path | None = None) -> Iterator[str]:
    """Yields what the folder `expert` says otherwise than `base` of what models read and end with.

    What one of them lacks is not compared: adapters bring no tokenizer, old files few settings.

    Args:
        common: directory of the tokenizer that the expert's tokens are moved to, so that no ids
            are compared; None: they stay.
    """
    if base.samefile(expert):
        return
    if common is None:
        yield from _tokens(base, expert)
    else:
        yield from _parts(*(read_json(each / "tokenizer.json") for each in (expert, common)))
    keys = (*_SPECIAL, *_SETTINGS, *(["eos_token_id"] if common is None else []))
    own, wanted = _settings(expert), _settings(common or base)
    for key in keys:
        if key in own and key in wanted and own[key] != wanted[key]:
            yield f"{key} {own[key]!r}, the base {wanted[key]!r}"
    template = template_of(expert)
    if template is not None and template != template_of(common or base):
        yield "a chat template that is not the base's"
    for name in _IMAGES:
        ours, theirs = read_json(expert / name), read_json(base / name)
        odd = [
            key
            for key in ours
            if key in theirs and key not in _CLASSES and _size(ours[key]) != _size(theirs[key])
        ]
        if odd:
            yield f"{name} with another {listing(odd)}"
    for folder in sorted({*modules(base), *modules(expert)}):
        if _bytes(base / folder) != _bytes(expert / folder):
            yield f"another {folder} behind its encoder"


def _tokens(base: Path, expert: Path) -> Iterator[str]:
    """Compares how texts become numbers, by the first kind of file that both have."""
    for name in (*_VOCABULARIES, *_OPAQUE):
        file, base_file = expert / name, base / name
        if not (file.is_file() and base_file.is_file()):
            continue
        if file.read_bytes() == base_file.read_bytes():
            return
        if name in _OPAQUE:
            yield f"another {name}"
            return
        own, wanted = _VOCABULARIES[name](file), _VOCABULARIES[name](base_file)
        yield from _ids(own, wanted)
        if name == "tokenizer.json":
            yield from _rules(read_json(file), read_json(base_file))
        return


def _ids(own: Mapping[str, int], wanted: Mapping[str, int]) -> Iterator[str]:
    moved = [token for token in wanted if own.get(token, wanted[token]) != wanted[token]]
    if moved:
        some = f"{moved[0]!r} is {own[moved[0]]}, to the base {wanted[moved[0]]}"
        yield f"other ids for {len(moved)} of the base's tokens ({some})"
        return
    at = {wanted[token]: token for token in wanted}
    renamed = [token for token in own if token not in wanted and own[token] in at]
    if renamed:
        some = f"{renamed[0]!r} for {at[own[renamed[0]]]!r}"
        yield f"other tokens at {len(renamed)} of the base's ids ({some})"


def _rules(own: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    """Yields parts that differ beyond what releases of transformers make of one tokenizer."""
    pairs = [[pair_of(merge) for merge in _merges(content)] for content in (own, wanted)]
    if pairs[0] != pairs[1]:
        yield "another order of merges"
    yield from _parts(own, wanted)


def _parts(own: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for part in ("normalizer", "pre_tokenizer"):
        ours, theirs = own.get(part) or {}, wanted.get(part) or {}
        if ours != theirs and ours.get("type") == theirs.get("type"):
            yield f"another {part}"


def _merges(content: dict[str, Any]) -> list[Any]:
    return (content.get("model") or {}).get("merges") or []


def pair_of(merge: Any) -> Any:
    """Returns the two parts of a merge, which older files write as one text."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _from_tokenizer(file: Path) -> dict[str, int]:
    return tokens_in(read_json(file))


def tokens_in(content: Mapping[str, Any]) -> dict[str, int]:
    """Returns token to id, added ones included, of what tokenizer.json holds."""
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score
        vocabulary = {entry[0]: i for i, entry in enumerate(vocabulary)}
    added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or ()}
    return {**vocabulary, **added}


def _from_vocabulary(file: Path) -> dict[str, int]:
    return {**read_json(file), **read_json(file.with_name("added_tokens.json"))}


def _from_lines(file: Path) -> dict[str, int]:
    lines = file.read_text(encoding="utf-8").split("\n")
    return {line: i for i, line in enumerate(lines) if line}


_VOCABULARIES: Mapping[str, Callable[[Path], dict[str, int]]] = {
    "tokenizer.json": _from_tokenizer,
    "vocab.json": _from_vocabulary,
    "vocab.txt": _from_lines,
}


_OPAQUE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm")


def _settings(folder: Path) -> dict[str, Any]:
    """Returns special tokens as text, what is put around texts, and the ids that end one."""
    content = read_json(folder / "special_tokens_map.json") | read_json(
        folder / "tokenizer_config.json"
    )
    found = {key: text_of(value) for key, value in content.items() if value is not None}
    for name in ("config.json", "generation_config.json"):  # the latter counts
        ends = read_json(folder / name).get("eos_token_id")
        if ends is not None:
            found["eos_token_id"] = sorted(ends) if isinstance(ends, list) else [ends]
    return found


def text_of(token: Any) -> Any:
    """Returns a special token as text, which files hold as text or with its flags."""
    return token.get("content") if isinstance(token, dict) else token


def template_of(folder: Path) -> Any | None:
    """Returns the chat template from wherever releases of transformers have put it."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template")
        if template is not None:
            return template.strip() if isinstance(template, str) else template
    return None


def _size(value: Any) -> Any:
    """Returns a length of both sides as a number: older files say 224, newer ones name sides."""
    sides = set(value.values()) if isinstance(value, dict) and "height" in value else ()
    return sides.pop() if len(sides) == 1 else value


def _bytes(folder: Path) -> dict[str, bytes]:
    """Returns the files of a module of sentence-transformers: some weights, or settings."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def read_json(file: Path) -> dict[str, Any]:
    """Returns a JSON object; empty where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
