"""Completion of words in a shell: Hydra's own, behind the word for the verb."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

WORDS = ("-sc", "--shell-completion", "--install-completion")


def complete(arguments: Sequence[str], verbs: Mapping[str, str | None]) -> None:
    """Prints a shell's script, or what the word under its cursor may become.

    Args:
        arguments: of the command line, in which one of `WORDS` stands; then ``install=SHELL``,
            ``uninstall=SHELL``, ``query=SHELL``, or the shell alone, by default that of the user.
        verbs: verb to its configuration; None: it has none.
    """
    at = next(i for i, word in enumerate(arguments) if word in WORDS)
    what = next(iter(arguments[at + 1 :]), Path(os.environ.get("SHELL") or "bash").name)
    task, _, shell = what.rpartition("=")
    config: str | None = "search"
    if task == "query":
        verb, rest, typed = _split(os.environ["COMP_LINE"], verbs)
        if typed:
            print(("\n" if shell == "fish" else " ").join(typed))
        config = verbs.get(verb)
        os.environ["COMP_LINE"] = f"evomerge {rest}"
    if config is not None:
        _hydra(config, f"{task or 'install'}={shell}")


def _split(line: str, verbs: Mapping[str, str | None]) -> tuple[str, str, list[str]]:
    """Returns the verb of a line, what follows it, and what the verb may become if it is none."""
    words = line.split()[1:] + ([""] if line.endswith(" ") else [])
    for count in (2, 1):
        verb = " ".join(words[:count])
        if verb in verbs and len(words) > count:
            return verb, " ".join(words[count:]), []
    begun = " ".join(words)
    fitting = [verb.split()[len(words) - 1] for verb in verbs if words and verb.startswith(begun)]
    return "", "", list(dict.fromkeys(fitting))


def _hydra(config: str, what: str) -> None:
    import hydra

    sys.argv = ["evomerge", "-sc", what]
    hydra.main("pkg://conf", config, version_base="1.3")(lambda _: None)()
