"""A tokenizer of all tokens that base and experts have: the base's files with what they lack."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from merging.checkpoints.inputs import pair_of, read_json, template_of, text_of, tokens_in
from merging.files import cache_dir, made_whole
from merging.weights import CheckpointError

_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_UNREADABLE = (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError)
_FORM = 2  # of the common tokenizer; another one where this file makes other files
# Older forms of the same tokenizer, which would lack the new tokens.
_STALE = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_WRITTEN = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
_READ = (*_WRITTEN, "special_tokens_map.json", "chat_template.json", "config.json")


def tokenizer_json(folder: Path) -> dict[str, Any] | None:
    """Returns what tokenizer.json holds, or would; None where the folder brings no tokenizer."""
    if content := read_json(folder / "tokenizer.json"):
        return content
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder)
        return dict(json.loads(loaded.backend_tokenizer.to_str()))
    except _UNREADABLE:
        return None


def united(
    base: Mapping[str, Any], experts: Sequence[Mapping[str, Any]], ids: Mapping[str, int]
) -> dict[str, Any]:
    """Returns the base's tokenizer.json with every token of `ids` at its id.

    Added tokens keep the flags of who brings them. Pieces of an expert's model join the base's
    model behind its own, those of a BPE with the merges that lead to them, so that texts are cut
    as the base cuts them, and then as the expert would go on.
    """
    content = deepcopy(dict(base))
    known = {token["content"] for token in content.get("added_tokens") or ()}
    pieces, old = _pieces(base), set(tokens_in(base))
    for expert in experts:
        added = {token["content"]: token for token in expert.get("added_tokens") or ()}
        for token in ids.keys() & added.keys() - known - old:
            content.setdefault("added_tokens", []).append({**added[token], "id": ids[token]})
            known.add(token)
        for token, score in _pieces(expert).items():
            if token in ids and token not in old:
                pieces.setdefault(token, score)
    content["added_tokens"] = sorted(
        content.get("added_tokens") or (), key=lambda each: each["id"]
    )
    if any(token not in old and token not in known for token in pieces):
        _set_pieces(content["model"], pieces, known, ids)
        _add_merges(content["model"], [e["model"] for e in experts], ids.keys() - old)
    return content


def _pieces(content: Mapping[str, Any]) -> dict[str, float]:
    """Returns the tokens of the model itself, in the order of their ids, with scores if any."""
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):
        return dict(vocabulary)
    return dict.fromkeys(sorted(vocabulary, key=vocabulary.__getitem__), 0.0)


def _set_pieces(
    model: dict[str, Any], pieces: Mapping[str, float], added: set[str], ids: Mapping[str, int]
) -> None:
    """Sets the model's tokens: added ones, too, which else would be numbered after the others."""
    by_id = {ids[token]: token for token in {*pieces, *added} if token in ids}
    if not isinstance(model["vocab"], list):
        model["vocab"] = {by_id[i]: i for i in sorted(by_id)}
        return
    least = min(pieces.values(), default=0.0) - 100.0  # never chosen for a text
    model["vocab"] = [[by_id[i], pieces.get(by_id[i], least)] for i in sorted(by_id)]


def _add_merges(model: dict[str, Any], others: Sequence[Mapping[str, Any]], new: set[str]) -> None:
    if "merges" not in model:
        return
    listed = {tuple(pair_of(merge)): None for merge in model["merges"]}
    for other in others:
        for merge in other.get("merges") or ():
            if "".join(pair_of(merge)) in new:
                listed.setdefault(tuple(pair_of(merge)))
    model["merges"] = [list(pair) for pair in listed]


def tokenizers_sha256(rule: str, folders: Sequence[Path]) -> str:
    """Returns the hash of all files that a common tokenizer is made of, and of the rule."""
    whole = hashlib.sha256(f"{_FORM} {rule}".encode())
    for number, folder in enumerate(folders):
        for name in sorted({*_READ, *_STALE}):
            if (folder / name).is_file():
                content = (folder / name).read_bytes()
                whole.update(f"{number} {name} {len(content)} ".encode() + content)
    return whole.hexdigest()


def completed(
    base: Path, experts: Sequence[Path], ids: Mapping[str, int], size: int | None
) -> bool:
    """Whether an expert has a special token or chat template where the base has none.

    Args:
        ids: every token's.
        size: rows of tokens; a special token without one is left out.
    """
    lacks = not template_of(base) and _first_with_template(experts) is not None
    return lacks or bool(_specials(base, experts, _with_rows(ids, size)))


def write_tokenizer(
    base: Path,
    experts: Sequence[Path],
    content: Mapping[str, Any],
    sha256: str,
    ids: Mapping[str, int],
    size: int,
) -> Path:
    """Returns a directory of the cache with the base's small files and the common tokenizer.

    Special tokens and chat template are the base's. Where it has none of a kind, they are those
    of the first expert that has one; with a template its end token comes, too, and ends answers
    beside the base's (``eos_token_id`` in generation_config.json).

    Args:
        content: of tokenizer.json.
        sha256: names the directory.
        ids: every token's; CheckpointError where transformers reads others.
        size: rows of tokens; a special token without one is left out.
    """
    held = _with_rows(ids, size)

    def make(draft: Path) -> None:
        for file in sorted(base.iterdir()):
            if file.suffix in (".json", ".jinja") and file.name not in _STALE:
                shutil.copyfile(file, draft / file.name)
        _write(draft / "tokenizer.json", content)
        settings = read_json(base / "tokenizer_config.json") | _specials(base, experts, held)
        donor = None if template_of(base) else _first_with_template(experts)
        if donor is not None:
            (draft / "chat_template.jinja").write_text(str(template_of(donor)), encoding="utf-8")
            settings |= _end_of(donor, draft, held)
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {
                str(token["id"]): {key: token[key] for key in token if key != "id"}
                for token in content["added_tokens"]
            }
        _write(draft / "tokenizer_config.json", settings)
        _check_tokens(draft, ids)

    return made_whole(cache_dir() / "vocabularies" / sha256, make)


def copy_tokenizer(folder: Path, target: Path) -> None:
    """Copies what `write_tokenizer` wrote over the base's files in `target`."""
    for name in _STALE:
        (target / name).unlink(missing_ok=True)
    for name in _WRITTEN:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def _check_tokens(folder: Path, ids: Mapping[str, int]) -> None:
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"transformers cannot read the common tokenizer ({error}); merge with vocabulary=base"
        ) from error
    found = loaded.get_vocab()
    odd = [token for token in {**ids, **found} if found.get(token) != ids.get(token)]
    if odd:
        raise CheckpointError(
            f"the common tokenizer gives {odd[0]!r} the id {found.get(odd[0], 'none')}, not "
            f"{ids.get(odd[0], 'none')} ({len(odd)} such tokens): this kind of tokenizer cannot "
            "be united; merge with vocabulary=base"
        )


def _with_rows(ids: Mapping[str, int], size: int | None) -> dict[str, int]:
    return {token: i for token, i in ids.items() if size is not None and i < size}


def _specials(base: Path, experts: Sequence[Path], held: Mapping[str, int]) -> dict[str, Any]:
    """Returns the special tokens that the base lacks, each of the first expert that has it."""
    own = _named(base)
    found: dict[str, Any] = {}
    for expert in experts:
        lacked = {k: v for k, v in _named(expert).items() if k not in own and text_of(v) in held}
        found = lacked | found
    return found


def _named(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "special_tokens_map.json")
    content |= read_json(folder / "tokenizer_config.json")
    return {key: content[key] for key in _SPECIAL if content.get(key)}


def _first_with_template(experts: Sequence[Path]) -> Path | None:
    return next((expert for expert in experts if template_of(expert)), None)


def _end_of(donor: Path, draft: Path, held: Mapping[str, int]) -> dict[str, Any]:
    """Returns the end token of a template; adds its id to those that end an answer."""
    end = _named(donor).get("eos_token")
    text = text_of(end)
    if text not in held:
        return {}
    base = read_json(draft / "config.json") | read_json(draft / "generation_config.json")
    ends = base.get("eos_token_id")
    listed = [] if ends is None else ends if isinstance(ends, list) else [ends]
    number = held[text]
    if number not in listed:
        settings = read_json(draft / "generation_config.json")
        _write(draft / "generation_config.json", settings | {"eos_token_id": [*listed, number]})
    return {"eos_token": end}


def _write(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")
