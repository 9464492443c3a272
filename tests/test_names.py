"""Names: a public class stands for one thing in the tree, and no module looks like a test."""

import ast
from collections import defaultdict
from pathlib import Path

from tests.test_layers import FILES, label


def public_classes(path: Path) -> list[str]:
    """Classes at the top of a module that do not begin with an underscore."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return [n.name for n in nodes if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]


def test_no_public_class_name_twice() -> None:
    places = defaultdict(list)
    for path in FILES:
        for name in public_classes(path):
            places[name].append(label(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_module_looks_like_a_test() -> None:
    names = [path for path in FILES if path.match("test_*.py") or path.match("*_test.py")]
    assert [label(path) for path in names] == []


def test_no_public_class_looks_like_a_test() -> None:
    """pytest would take it for a collection of tests where a test imports it."""
    found = [
        (label(p), name) for p in FILES for name in public_classes(p) if name.startswith("Test")
    ]
    assert found == []
