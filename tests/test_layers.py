"""Who may import whom, read from the sources without running them; and that the examples run."""

import ast
import doctest
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("merging", "evaluators", "search", "experiments")  # each imports only those before it
PACKAGES = (*LAYERS, "conf")
FILES = sorted(path for layer in PACKAGES for path in (ROOT / layer).rglob("*.py"))
IMPORT_NAMES = {"hydra-core": "hydra", "lm-eval": "lm_eval", "types-PyYAML": "yaml"}


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere, in functions too, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{label(path)}:{node.lineno}: imports are absolute"
            yield node.module or "", node.lineno


def tops(path: Path) -> dict[str, int]:
    """First part of every imported module -> a line that imports it."""
    return {module.partition(".")[0]: line for module, line in imported(path)}


def test_there_is_something_to_test() -> None:
    assert {layer_of(path) for path in FILES} == set(PACKAGES)
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_layer_imports_only_those_before_it(path: Path) -> None:
    layer = layer_of(path)
    allowed = set(LAYERS[: LAYERS.index(layer) + 1]) if layer in LAYERS else set()
    for top, line in tops(path).items():
        if top in (*PACKAGES, "tests"):
            assert top in allowed, f"{label(path)}:{line}: {layer} must not import {top}"


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("hydra", ("experiments/",)),
        ("omegaconf", ("experiments/",)),
        ("wandb", ("experiments/",)),
        ("transformers", ("merging/", "evaluators/", "experiments/")),
        (
            "lm_eval",
            ("evaluators/harness/", "evaluators/engine/served", "experiments/scoring/"),
        ),
        ("nevergrad", ("search/",)),
        ("peft", ("merging/", "experiments/")),
    ],
)
def test_a_dependency_is_known_to_few(module: str, allowed: tuple[str, ...]) -> None:
    for path in FILES:
        line = tops(path).get(module)
        fits = label(path).startswith(allowed)
        assert line is None or fits, f"{label(path)}:{line}: must not import {module}"


def children_tied(folder: Path) -> dict[str, set[str]]:
    """What stands in a folder, files and folders -> what of it each imports."""
    prefix = (*folder.relative_to(ROOT).parts,)
    depth, names = len(prefix), {path.stem for path in folder.iterdir()}
    ties: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        own = path.relative_to(folder).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            for alias in node.names:
                parts = (*node.module.split("."), alias.name)
                if parts[:depth] == prefix and parts[depth] in names - {own}:
                    ties.setdefault(own, set()).add(parts[depth])
    return ties


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=label)
def test_no_circle_among_what_stands_in_a_folder(folder: Path) -> None:
    """Files and folders beside each other can be read bottom up, at every level of the tree."""
    TopologicalSorter(children_tied(folder)).prepare()  # raises CycleError and names the circle


def test_conf_imports_nothing() -> None:
    for path in (ROOT / "conf").rglob("*.py"):
        assert set(tops(path)) <= {"__future__"}, label(path)


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=label)
def test_init_files_hold_a_docstring_and_the_class_that_others_import(path: Path) -> None:
    docstring, *others = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in others:
        assert isinstance(node, ast.ImportFrom), f"{label(path)}:{node.lineno}"
        assert (node.module or "").startswith(f"{package}."), f"{label(path)}:{node.lineno}"
        assert all(alias.asname == alias.name for alias in node.names), "exported by its own name"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("evaluators.engine", "Engine"),
        ("evaluators.resident", "Resident"),
        ("evaluators.harness", "LmEvalTask"),
    ],
)
def test_public_names(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name).__name__ == name


def test_every_folder_with_code_is_a_package() -> None:
    for folder in {path.parent for path in FILES}:
        assert (folder / "__init__.py").is_file(), f"{label(folder)} lacks __init__.py"


def test_no_module_shadows_the_standard_library_or_a_dependency() -> None:
    named = [text.split(";")[0].strip() for text in requires("evomerge") or ()]
    projects = {
        "".join(c if c.isalnum() or c in "-_" else " " for c in n).split()[0] for n in named
    }
    taken = sys.stdlib_module_names | {
        IMPORT_NAMES.get(project, project.replace("-", "_")) for project in projects
    }
    taken |= {"omegaconf", "yaml", "tokenizers", "datasets", "huggingface_hub", "evaluate"}
    assert {"torch", "lm_eval", "hydra", "random"} <= taken
    for path in FILES:
        name = path.parent.name if path.name == "__init__.py" else path.stem
        assert name not in taken, f"{label(path)} shadows {name}"


def test_nothing_catches_everything() -> None:
    """But the edge to the user, which sorts Hydra's errors out and lets the others through."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and label(path) != "experiments/runs/errors.py":
                caught = None if node.type is None else ast.unparse(node.type)
                assert caught not in (None, "Exception", "BaseException"), (
                    f"{label(path)}:{node.lineno}: name the errors that are expected"
                )


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, where = ast.unparse(node.func), f"{label(path)}:{node.lineno}"
            assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), where
            if called == "torch.load":
                options = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert options.get("weights_only") == "True", where


def modules(*layers: str) -> list[str]:
    """Import paths of all files of some layers."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if layer_of(path) in layers and path.name != "__main__.py"
    ]


SIDE_EFFECTS = """
import importlib, os, random, sys
import nevergrad, numpy, peft, torch, transformers  # peft sets a variable of its own

def state():
    return str([
        torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(), torch.cuda.is_initialized(),
        numpy.random.get_state()[1].tolist(), random.getstate(), dict(os.environ), os.getcwd(),
    ])

before = state()
for name in NAMES:
    importlib.import_module(name)
assert state() == before, "a module changes global state when it is imported"
heavy = {"lm_eval", "wandb", "hydra", "matplotlib"} & set(sys.modules)
assert not heavy, f"{heavy} must wait until it is needed"
"""


_IDLE = ("peft", "nevergrad", "cma", "scipy.stats", "matplotlib", "lm_eval", "wandb", "pandas")
_ASKING = ("scipy", "transformers", "numba", "tokenizers", "datasets")


def test_importing_merging_and_search_has_no_side_effects() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIDE_EFFECTS.replace("NAMES", repr(modules("merging", "search")))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "idle"),
    [
        ("experiments.searches.finished", {"torch", *_IDLE, *_ASKING}),
        ("experiments.commands.merge_models", {*_IDLE, *_ASKING}),
        ("experiments.searches.run", {*_IDLE}),
    ],
)
def test_a_verb_imports_only_what_it_uses(module: str, idle: set[str]) -> None:
    loaded = f"print(sorted({idle} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; {loaded}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "name",
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if ">>> " in path.read_text(encoding="utf-8")
    ],
)
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
