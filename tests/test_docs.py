"""The pages of docs/: every option has a word, every command composes or is run as written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module

from docs import option_pages
from experiments.cli import _VERBS
from experiments.commands.shorthands import longhand

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GROUPS = sorted({path.parent for path in (ROOT / "conf").glob("*/*.yaml")})
FENCE = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; a shell's with a title, which says what it takes, is not run."""

    language: str
    title: str
    text: str

    @property
    def is_run(self) -> bool:
        return self.language == "sh" and not self.title


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def lines_not_run(page: Path) -> Iterator[list[str]]:
    """Words of every `evomerge ...` line in the blocks of a page that are not run."""
    for block in blocks(page):
        left = block.language == "sh" and not block.is_run
        for line in block.text.replace("\\\n", " ").split("\n") if left else ():
            words = shlex.split(line, comments=True)
            if words[:1] == ["evomerge"]:
                yield words[1 : words.index(">") if ">" in words else None]


def leaves(values: dict[Any, Any], at: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{at}.{key}")
        elif key not in option_pages.HIDDEN:
            yield f"{at}.{key}"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return option_pages.pages()


@pytest.mark.parametrize(
    "folder", [g for g in GROUPS if g.name != "experiment"], ids=lambda g: g.name
)
def test_every_option_of_a_group_is_on_its_page(made: dict[str, str], folder: Path) -> None:
    page = made[f"options/{folder.name}.md"]
    place = "search_on" if folder.name == "evaluator" else folder.name
    for path in folder.glob("*.yaml"):
        section = page.split(f"{{ #{path.stem} }}\n")[1].split("\n## ")[0]
        if path.stem.endswith(option_pages.PANELS):
            continue
        for option in leaves(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, place):
            parts = option.split(".")
            above = [".".join(parts[:n]) for n in range(2, len(parts) + 1)]
            assert any(f"| `{name}` |" in section for name in above), f"{path.name}: {option}"


def test_an_option_without_a_word_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(option_pages.CONF, tmp_path / "conf")
    monkeypatch.setattr(option_pages, "CONF", tmp_path / "conf")
    path = tmp_path / "conf/racing/halving.yaml"
    path.write_text(re.sub(r"(eta: 3.0).*", r"\1", path.read_text(encoding="utf-8")))
    with pytest.raises(ValueError, match=r"halving\.yaml: racing\.eta has no comment"):
        option_pages.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_is_understood(page: Path) -> None:
    """Every verb, part and option exists of the commands that need a GPU, a hub or hours."""
    for words in lines_not_run(page):
        verb = next(
            v for v in sorted(_VERBS, reverse=True) if words[: len(v.split())] == v.split()
        )
        options = [word for word in words[len(verb.split()) :] if is_option(word)]
        if "-m" in words:  # the first value of a sweep
            options = [re.sub(r"^([^\[{]+?),.*", r"\1", word) for word in options]
        if [word.partition("=")[0] for word in options] == ["experiment"]:
            assert (ROOT / f"conf/experiment/{options[0].partition('=')[2]}.yaml").is_file()
        elif _VERBS[verb][2] is not None:
            assert composes(_VERBS[verb][2], tuple(options)), words


@cache
def composes(config_name: str, options: tuple[str, ...]) -> bool:
    with initialize_config_module("conf", version_base="1.3"):
        return bool(compose(config_name, overrides=longhand(config_name, options)))


def is_option(word: str) -> bool:
    """Whether it can be composed here: no launcher's option, and no file's that is not here."""
    return bool(re.match(r"(?!hydra|mergekit_evolve)([\w.@/+]+=|~)", word))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    """Their anchors are looked for where the site is built."""
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") < 150


@pytest.fixture(scope="session")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a new user: the command is on the path, home and caches are empty."""
    home = tmp_path_factory.mktemp("home")
    command = home / "bin/evomerge"
    command.parent.mkdir()
    run = f'PYTHONPATH="$PYTHONPATH:{ROOT}" exec {sys.executable} -m experiments.cli "$@"'
    command.write_text(f"#!/bin/sh\n{run}\n", encoding="utf-8")
    command.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EVOMERGE_")}
    path = f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1"}


RUN = [page for page in PAGES if any(block.is_run for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_as_written(
    page: Path, newcomer: dict[str, str], tmp_path: Path
) -> None:
    """In an empty directory that holds the files whose names stand above blocks of the page."""
    for block in blocks(page):
        if block.language != "sh" and re.fullmatch(r"[\w./]+\.\w+", block.title):
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
    script = "\n".join(block.text for block in blocks(page) if block.is_run)
    done = subprocess.run(
        ["bash", "-exuo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=newcomer,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
