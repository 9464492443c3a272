"""Text that every machine with this project has, in three domains, split by document.

``code``: the standard library's Python without docstrings and comments. ``prose``: the docstrings
of the standard library and of torch and the texts of ``pydoc``, without examples. ``headers``: the
C++ headers that come with torch, without comments. All of it is reduced to printable ASCII, so
that one byte is one character is one token.
"""

import ast
import random
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from pydoc_data import topics
from typing import TypeAlias

import torch

from experiments.runs.progress import ProgressBar
from merging.seeding import stable_seed

DOMAINS = ("code", "prose", "headers")
EVALUATION_SPLITS = ("search", "selection", "report")

_NOT_LIBRARY = frozenset(
    {
        *("test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"),
        *("pydoc_data", "encodings"),
    }
)
_DIFFERS_BETWEEN_BUILDS = ("_sysconfigdata", "config-")
_Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_DOCUMENTED_FOLDERS = ("distributions/", "nn/", "optim/", "utils/")  # of torch
_LARGEST_FILE_BYTES = 60_000
_SMALLEST_DOCUMENT_BYTES = 600
_BOILERPLATE_LINE_BYTES = 24
_PRINTABLE = re.compile(r"[\n\x20-\x7e]*")
_BLOCK_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_LINE_COMMENT = re.compile(r"\s*//.*")


@dataclass(frozen=True)
class Document:
    """One source file's share of a domain: printable ASCII and newlines.

    Its name is the path below the library's folder, the same on every machine.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Domain:
    """One domain's documents, split so that no document is in two splits.

    The keys of `held_out` are `EVALUATION_SPLITS`.
    """

    train: tuple[Document, ...]
    held_out: Mapping[str, tuple[Document, ...]]


def read_domains() -> dict[str, list[Document]]:
    """Returns the documents of every one of `DOMAINS`, cleaned, without shared boilerplate."""
    library = Path(torch.__file__).parent
    code: list[Document] = []
    prose = [
        Document(f"pydoc/{topic}", prose_of(topics.topics[topic]))
        for topic in sorted(topics.topics)
    ]
    own = _files(Path(sysconfig.get_path("stdlib")), ".py", _NOT_LIBRARY)
    documented = [
        (name, path)
        for name, path in _files(library, ".py", _NOT_LIBRARY)
        if name.startswith(_DOCUMENTED_FOLDERS)
    ]
    # ATen/ops holds thousands of generated files that differ in a name.
    aten = _files(library / "include" / "ATen", ".h", frozenset({"ops"}))
    with ProgressBar(len(own) + len(documented) + len(aten), "reading text", "file") as bar:
        for name, source in _read(own, bar):
            if (tree := _parsed(source)) is not None:
                code.append(Document(name, code_of(source, tree)))
                prose.append(Document(name, prose_of(docstrings_of(tree))))
        for name, source in _read(documented, bar):
            if (tree := _parsed(source)) is not None:
                prose.append(Document(f"torch/{name}", prose_of(docstrings_of(tree))))
        headers = [Document(name, header_of(source)) for name, source in _read(aten, bar)]
    documents = zip(DOMAINS, (code, prose, headers), strict=True)
    return {domain: without_boilerplate(of) for domain, of in documents}


def _files(root: Path, suffix: str, skip: frozenset[str]) -> list[tuple[str, Path]]:
    """Returns (name, path) of the files below a folder, in sorted order of names."""
    named = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob(f"*{suffix}"))
    return [
        (name, path)
        for name, path in named
        if not skip & set(name.split("/"))
        and not name.startswith(_DIFFERS_BETWEEN_BUILDS)
        and path.stat().st_size <= _LARGEST_FILE_BYTES
    ]


def _read(files: Sequence[tuple[str, Path]], bar: ProgressBar) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of those that are UTF-8; a source in another encoding is not needed."""
    for name, path in files:
        bar.update()
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def _parsed(source: str) -> ast.Module | None:
    """Returns the syntax tree; None for a template that is no Python of this version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in other people's strings
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return None


def _documented(tree: ast.Module) -> list[_Documented]:
    return [node for node in ast.walk(tree) if isinstance(node, _Documented)]


def docstrings_of(tree: ast.Module) -> str:
    """Returns all docstrings of a module as one text."""
    strings = (ast.get_docstring(node) for node in _documented(tree))
    return "\n\n".join(string for string in strings if string)


def code_of(source: str, tree: ast.Module) -> str:
    """Returns Python source without docstrings, comment lines and runs of blank lines."""
    lines = source.split("\n")
    for node in _documented(tree):
        if ast.get_docstring(node, clean=False) is not None:
            string = node.body[0]
            for number in range(string.lineno - 1, string.end_lineno or string.lineno):
                lines[number] = ""
    return _tidy(line for line in lines if not line.lstrip().startswith("#"))


def prose_of(text: str) -> str:
    """Returns the paragraphs of a text that read as sentences, without examples."""
    return _tidy(
        line
        for paragraph in text.split("\n\n")
        if _is_prose(paragraph)
        for line in [*paragraph.split("\n"), ""]
    )


def _is_prose(paragraph: str) -> bool:
    if ">>>" in paragraph or len(paragraph) < 40:
        return False
    plain = sum(character.isalpha() or character in " ,.\n" for character in paragraph)
    return plain > 0.9 * len(paragraph)


def header_of(source: str) -> str:
    """Returns C++ source without comment lines and runs of blank lines."""
    lines = _BLOCK_COMMENT.sub("", source).split("\n")
    return _tidy(line for line in lines if not _LINE_COMMENT.fullmatch(line))


def _tidy(lines: Iterator[str]) -> str:
    """Joins lines, without those that are not ASCII and without more than one blank in a row."""
    tidy: list[str] = []
    for line in lines:
        line = line.rstrip()
        if _PRINTABLE.fullmatch(line) and (line or (tidy and tidy[-1])):
            tidy.append(line)
    return "\n".join(tidy).strip("\n") + "\n"


def without_boilerplate(documents: Sequence[Document]) -> list[Document]:
    """Returns the documents without the long lines that several of them share.

    Licence headers and copied paragraphs would otherwise be known by heart on held-out text. A
    document that is hardly more than that is dropped.
    """
    owners = Counter(line for document in documents for line in set(_long_lines(document.text)))
    kept = []
    for document in documents:
        lines = document.text.split("\n")
        text = _tidy(line for line in lines if owners[line.strip()] < 2)
        if len(text) >= _SMALLEST_DOCUMENT_BYTES:
            kept.append(Document(document.name, text))
    return kept


def _long_lines(text: str) -> list[str]:
    stripped = (line.strip() for line in text.split("\n"))
    return [line for line in stripped if len(line) >= _BOILERPLATE_LINE_BYTES]


def split_documents(
    documents: Sequence[Document], *, domain: str, seed: int, held_out: Mapping[str, int]
) -> Domain:
    """Returns the documents dealt to splits in an order that depends on names and seed alone.

    `held_out` says how many each split gets, the rest is for training; ValueError: too few.
    """
    order = sorted(documents, key=lambda document: stable_seed(seed, domain, document.name))
    needed = sum(held_out.values())
    if needed >= len(order):
        raise ValueError(
            f"domain {domain!r} has {len(order)} documents on this machine, expected more than "
            f"the {needed} that are held out; use a full Python and torch, or smaller splits"
        )
    dealt: dict[str, tuple[Document, ...]] = {}
    for split, count in held_out.items():
        dealt[split] = tuple(order[:count])
        order = order[count:]
    return Domain(tuple(order), dealt)


def chunks(documents: Sequence[Document], *, count: int, size: int, seed: int) -> list[str]:
    """Returns `count` different pieces of exactly `size` bytes that start where a line starts.

    They are spread over the documents as evenly as these allow; ValueError: there are too few.
    """
    pieces = [list(_pieces(document.text, size)) for document in documents]
    return _spread(pieces, count, f"pieces of {size} bytes", seed)


def _spread(pieces: Sequence[Sequence[str]], count: int, what: str, seed: int) -> list[str]:
    """Returns `count` different texts: one of every document, then a second of every one, ..."""
    draw = random.Random(seed)
    shuffled = [draw.sample(texts, len(texts)) for texts in pieces]
    rounds = (text for texts in zip_longest(*shuffled) for text in texts if text is not None)
    different = list(islice(dict.fromkeys(rounds), count))
    if len(different) < count:
        raise ValueError(f"expected {count} {what} in this split, found {len(different)}")
    return different


def _pieces(text: str, size: int) -> Iterator[str]:
    start = 0
    while len(text) - start >= size:
        yield text[start : start + size]
        line_end = text.find("\n", start + size)
        if line_end < 0:
            return
        start = line_end + 1


@dataclass(frozen=True)
class ChoiceItem:
    """Which of four texts of equal length, of the same domain and split, follows the context?"""

    context: str
    choices: tuple[str, ...]
    label: int


def choices(
    documents: Sequence[Document], *, count: int, context: int, continuation: int, seed: int
) -> list[ChoiceItem]:
    """Returns `count` questions: `context` bytes and four answers of `continuation` bytes.

    Every continuation starts inside a word, the true one and the three others, so that a model
    of modest size can tell them apart. ValueError: the documents do not hold that many.
    """
    size = context + continuation + 16  # room to shift the cut into a word
    pieces = [
        [piece for piece in _pieces(document.text, size) if _cut(piece, context) is not None]
        for document in documents
    ]
    cuts = {piece: _cut(piece, context) or context for texts in pieces for piece in texts}
    endings = sorted({piece[cut : cut + continuation] for piece, cut in cuts.items()})
    if len(endings) < 4:
        raise ValueError(f"expected 4 different continuations, found {len(endings)}")
    draw = random.Random(seed)
    questions = []
    for piece in _spread(pieces, count, "places for a question", seed):
        cut = cuts[piece]
        true = piece[cut : cut + continuation]
        options = [*draw.sample([ending for ending in endings if ending != true], 3), true]
        draw.shuffle(options)
        questions.append(
            ChoiceItem(piece[cut - context : cut], tuple(options), options.index(true))
        )
    return questions


def _cut(piece: str, context: int) -> int | None:
    """Returns the first place from `context` on with three letters before and two after it."""
    for cut in range(context, context + 14):
        if piece[cut - 3 : cut + 2].isalpha():
            return cut
    return None
