"""What `mkdocs build` adds to the pages in this folder: options, results, the command line.

Pages that the navigation of `mkdocs.yml` does not name come under "More", so that a new file needs
no line there.
"""

import ast
import re
from pathlib import Path
from typing import Any

import option_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([\w/]+)\.md")  # a link to a page elsewhere in the repository


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made from other files, and completes the navigation."""
    made = {**option_pages.pages(), **_copied(), "commands.md": _command_line()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for picture in ROOT.glob("experiments/papers/*/*.png"):
        place = f"results/{picture.relative_to(ROOT / 'experiments').as_posix()}"
        files.append(File.generated(config, place, content=picture.read_bytes()))
    verbs = [f"options/verb_{name}.md" for name in option_pages.VERBS]
    options = sorted(path for path in made if path.startswith("options/") and path not in verbs)
    config.nav.append({"Every option": [*verbs, *options]})
    config.nav.append({"Results": sorted(path for path in made if path.startswith("results/"))})
    named = set(_paths(config.nav))
    more = sorted(f.src_uri for f in files.documentation_pages() if f.src_uri not in named)
    if more:
        config.nav.append({"More": more})
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to Markdown files beside docs/ into links to their pages."""
    up = "../" * page.file.src_uri.count("/")
    return OUTSIDE.sub(lambda found: f"]({up}{_place(found[1])}", markdown)


def _copied() -> dict[str, str]:
    """Pages that lie with the code: results of experiments, and the architecture."""
    paths = [*ROOT.glob("experiments/papers/*/*.md"), *ROOT.glob("experiments/*/*RESULTS.md")]
    texts = {path: path.read_text(encoding="utf-8") for path in [*paths, ROOT / "ARCHITECTURE.md"]}
    return {
        _place(path.relative_to(ROOT).with_suffix("").as_posix()): text
        for path, text in texts.items()
    }


def _place(name: str) -> str:
    """Where the page of a file of the repository, named without its ending, is on the site."""
    return f"{name.replace('experiments/', 'results/', 1)}.md"


def _command_line() -> str:
    tree = ast.parse((ROOT / "experiments/cli.py").read_text(encoding="utf-8"))
    (text,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HELP"
    )
    return f"# The command line\n\n`evomerge --help` prints:\n\n```text\n{text}```\n"


def _paths(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [path for entry in entries for path in _paths(entry)]
