"""Pages of every option, made from `conf/` and the comments in it.

A file's first comment says what choosing it means, the comment behind an option what that does:
in all files of its group that have none there, and in a mapping for all that it holds. An option
without a word ends the build.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parent.parent / "conf"
HIDDEN = {"defaults", "_target_", "_partial_", "<<", "hydra"}  # Hydra's and YAML's own
PANELS = ("_search", "_selection", "_report")  # ready-made evaluators of one panel
VERBS = {
    "search": "search, check",
    "merge": "merge",
    "evaluate": "evaluate",
    "statistics": "statistics",
    "split": "split vendor, split customer",
    "dedup": "zoo dedup",
}
SHARED = {"common": "Options of every verb that holds a model", "own_tasks": "Options of `tasks=`"}


@dataclass(frozen=True)
class Option:
    """One line of a file; `key` is its path below the class `owner`, `note` may be ""."""

    path: str
    default: str
    note: str
    key: str
    owner: str

    @property
    def sources(self) -> tuple[str, str]:
        """Whose comment holds where it has none: the same class's, then the group's."""
        return f"{self.owner}:{self.key}", self.key


@dataclass(frozen=True)
class Part:
    """An entry of a defaults list; `group` is "" where it takes all of another file."""

    group: str
    place: str
    file: str
    note: str
    replaces: bool

    @property
    def word(self) -> str:
        """What one would write on the command line."""
        return self.group if self.place == self.group else f"{self.group}@{self.place}"


@dataclass(frozen=True)
class Choice:
    """One file: what it is for, the parts that it names, its options and their classes."""

    name: str
    says: str
    parts: tuple[Part, ...]
    options: tuple[Option, ...]
    targets: tuple[str, ...]


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown: a page for each group, each verb and what verbs share.

    Raises:
        ValueError: An option, a file or a group that nothing says a word on.
    """
    verbs = {name: read(CONF / f"{name}.yaml") for name in VERBS}
    made = {f"options/verb_{name}.md": _verb_page(name, choice) for name, choice in verbs.items()}
    for name, title in SHARED.items():
        choice = read(CONF / f"{name}.yaml")
        made[f"options/{name}.md"] = f"# {title}\n\n{choice.says}\n\n{_table(choice, {}, '')}"
    for folder in sorted(path for path in CONF.iterdir() if any(path.glob("*.yaml"))):
        made[f"options/{folder.name}.md"] = _group_page(folder, verbs)
    return made


def read(path: Path) -> Choice:
    """One configuration file; raises ValueError where it does not say what it is for."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            words = line.lstrip("# ").strip()
            head.append(f"`{words}`" if words.startswith("evomerge ") else _escape(words))
    if not head:
        raise ValueError(f"{path}: say in a comment on its first line what it is for")
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    return Choice(
        path.stem,
        " ".join(head),
        tuple(_parts(root, lines)),
        tuple(_options(root, lines)),
        tuple(_targets(yaml.safe_load(text))),
    )


def _targets(values: dict[str, Any]) -> Iterator[str]:
    """Classes that a file's top level, or the entries of it, build."""
    for node in (values, *values.values()):
        if isinstance(node, dict) and "_target_" in node:
            yield node["_target_"]


def _parts(root: yaml.MappingNode, lines: list[str]) -> Iterator[Part]:
    for name, value in root.value:
        if name.value != "defaults":
            continue
        for entry in value.value:
            if isinstance(entry, yaml.MappingNode):
                ((name, choice),) = entry.value
                words = name.value.removeprefix("override ")
                group, _, place = words.lstrip("/").partition("@")
                place = place.removeprefix("_global_.") or group
                if not group.startswith("hydra"):
                    note, replaces = _comment(lines, choice), words != name.value
                    yield Part(group, place, choice.value, note, replaces)
            elif entry.value != "_self_":
                yield Part("", "", entry.value.partition("@")[0], "", False)


def _options(
    node: yaml.MappingNode, lines: list[str], above: Option = Option("", "", "", "", "")
) -> Iterator[Option]:
    """Options of a mapping; `above` is the entry that it is the value of."""
    target = [value.value for name, value in node.value if name.value == "_target_"]
    for name, value in node.value:
        if name.value in HIDDEN:
            continue
        path = f"{above.path}.{name.value}".lstrip(".")
        key = name.value if target else f"{above.key}.{name.value}".lstrip(".")
        owner = target[0] if target else above.owner
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            whole = Option(path, "", _comment(lines, name), key, owner)
            if whole.note:
                yield whole
            yield from _options(value, lines, whole)
        else:
            note = _comment(lines, value) or above.note
            yield Option(path, _source(lines, value), note, key, owner)


def _source(lines: list[str], node: yaml.Node) -> str:
    start, end = node.start_mark, node.end_mark
    return lines[start.line][start.column : end.column if end.line == start.line else None].strip()


def _comment(lines: list[str], node: yaml.Node) -> str:
    """What stands behind a value, or behind a name whose mapping follows below."""
    if node.end_mark.line >= len(lines):
        return ""
    rest = lines[node.end_mark.line][node.end_mark.column :].lstrip(": ")
    return rest.lstrip("# ") if rest.startswith("#") else ""


def _verb_page(name: str, choice: Choice) -> str:
    rows = "".join(
        f"| `{part.word}=` | [`{part.file}`]({part.group}.md) | {_cell(part.note)} |\n"
        for part in choice.parts
        if part.group
    )
    shared = ", ".join(
        f"[{SHARED[part.file][0].lower()}{SHARED[part.file][1:]}]({part.file}.md)"
        for part in choice.parts
        if part.file in SHARED
    )
    return "\n".join(
        [
            f"# Options of {_verbs(name)}\n",
            f"{choice.says}\n",
            f"## Parts\n\n| part | default | what it is |\n|---|---|---|\n{rows}",
            f"## Options\n\n{_table(choice, {}, '')}",
            f"Beside them: {shared}.\n" if shared else "",
        ]
    )


def _verbs(name: str) -> str:
    return " and ".join(f"`evomerge {verb}`" for verb in VERBS[name].split(", "))


def _group_page(folder: Path, verbs: dict[str, Choice]) -> str:
    group = folder.name
    uses = [
        (v, part) for v, choice in verbs.items() for part in choice.parts if part.group == group
    ]
    if not any(part.note for _, part in uses):
        raise ValueError(f"conf/{group}: say in a comment among a verb's defaults what it is")
    lines = [f"# `{group}=`\n"]
    for verb, part in uses:
        default = "" if part.file == "null" else f", `{part.file}` unless said otherwise"
        note = part.note and f": {_escape(part.note)}"
        lines.append(f"- `{part.word}=` of {_verbs(verb)}{default}{note}")
    choices = [read(path) for path in sorted(folder.glob("*.yaml"))]
    notes = _shared_notes(choices)
    documented = {c.targets[0]: c.name for c in choices if c.targets and not _ready(c)}
    for choice in choices:
        lines.append(f"\n## {choice.name} {{ #{choice.name} }}\n\n{choice.says}\n")
        lines += _said_of_parts(choice)
        if _ready(choice):
            of = sorted({f"[`{documented[t]}`](#{documented[t]})" for t in choice.targets})
            tasks = sorted({f"`{option.path.partition('.')[0]}`" for option in choice.options})
            lines.append(f"Tasks {', '.join(tasks)}, with the options of {' or '.join(of)}.\n")
        elif choice.options and group != "experiment":  # which holds differences only
            lines.append(_table(choice, notes, uses[0][1].place))
    return "\n".join(lines)


def _said_of_parts(choice: Choice) -> Iterator[str]:
    """What a choice says of other groups, and what it is put together from."""
    sets = [f"`{p.word}={p.file}`" for p in choice.parts if p.replaces and "." not in p.place]
    whole = [f"[`{p.file}`](#{p.file})" for p in choice.parts if not p.group]
    held = [f"`{p.word}={p.file}`" for p in choice.parts if p.group and not p.replaces]
    if whole:
        yield f"All options of {', '.join(whole)}, and these.\n"
    if sets:
        yield f"It stands for {', '.join(sets)} too.\n"
    if held:
        yield f"Its parts: {', '.join(held)}.\n"


def _ready(choice: Choice) -> bool:
    return choice.name.endswith(PANELS)


def _shared_notes(choices: list[Choice]) -> dict[str, str]:
    """A class's key, and a key -> its comment, where all files of a group with one agree."""
    found: dict[str, set[str]] = {}
    for choice in choices:
        for option in choice.options:
            for source in option.sources:
                found.setdefault(source, set()).update({option.note} - {""})
    return {key: notes.pop() for key, notes in found.items() if len(notes) == 1}


def _table(choice: Choice, notes: dict[str, str], at: str) -> str:
    rows = ["| option | default | what it does |", "|---|---|---|"]
    for option in choice.options:
        note = option.note or next((notes[s] for s in option.sources if s in notes), "")
        path = f"{at}.{option.path}".lstrip(".")
        if not note:
            raise ValueError(
                f"conf: {choice.name}.yaml: {path} has no comment that says what it does"
            )
        default = (
            "required"
            if option.default == "???"
            else option.default and f"`{_bars(option.default)}`"
        )
        rows.append(f"| `{path}` | {default} | {_cell(note)} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return _bars(_escape(text))


def _bars(text: str) -> str:
    return text.replace("|", "\\|")


def _escape(text: str) -> str:
    """Text in which Markdown and HTML see no markup but code in backticks."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = parts[i].replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    return "`".join(parts)
