"""What may be said shorter: base=, experts={...}, tasks=[...], budget=N, mergekit_evolve=FILE."""

import re
import sys
from collections.abc import Sequence

from experiments.mergekit_evolve.words import spelt, with_file, with_more

_EXPERTS = ("search", "merge", "statistics")  # whose experts are a group, by configuration
# What says how to search, that there is not one number to search by, or what auto cannot do.
_HOW = re.compile(
    r"(strategy|space|initial|method|grouping|noise|privacy|experiment(_file)?|common_items)="
    r"|objective=pareto|asynchronous=true|choose=shrinkage"
)
# A value in a list or table with what stands before it; one in quotes; what Hydra takes bare.
_STRING = r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'"
_ELEMENT = re.compile(
    rf"((?:^|[\[{{,])\s*(?:[\w.@/-]+:\s*)?)({_STRING}|[^\s\[\]{{}},\"'][^\[\]{{}},]*)"
)
_BARE = re.compile(rf"{_STRING}|[\w/\-+.$%*@?|: ]*|.*\\.*|.*\$", re.ASCII)
_PANELS = ("search_on", "select_on", "report_on", "gather_on")


def longhand(config_name: str, words: Sequence[str]) -> list[str]:
    """Returns the words with every shorthand as what the groups say; `with_tasks` reads tasks=.

    Exits with status 2 and a sentence where a shorthand is cut up by the shell, or says what
    another word says as well.

    Example:
        >>> longhand("search", ["base=B", "experts={a:A}", "budget=9", "experts=hub"])
        ['experts.base=B', 'experts.experts={a:A}', 'budget.evaluations=9', 'experts=hub']
        >>> longhand("search", ["-m", "base=B,C", "seed=0,1"])
        ['-m', 'experts=local', 'experts.base=B,C', 'seed=0,1']
    """
    words = list(map(_quoted, with_file(words) if config_name == "search" else words))
    _check(words)
    if _own(words):
        _check_panels(words)
    if config_name not in _EXPERTS:
        return words
    long = [_long(word) for word in words]
    own = (
        "experts={"
        if any(word.startswith("experiment=") for word in words)
        else r"experts={|base="
    )
    local = any(re.match(own, word) for word in words)
    chosen = any(word.startswith("experts=") for word in long)
    more = ["experts=local"] if local and not chosen else []
    return with_more(long, [*more, *_strategy(config_name, words)])


def _strategy(config_name: str, words: Sequence[str]) -> list[str]:
    """Returns what searches tasks of one's own where nothing is said of how."""
    tasks = config_name == "search" and _own(words)
    return ["strategy=auto"] if tasks and not any(map(_HOW.match, words)) else []


def _own(words: Sequence[str]) -> bool:
    return any(word.startswith("tasks=") and word != "tasks=null" for word in words)


def _quoted(word: str) -> str:
    """Returns a shorthand with quotes around what Hydra takes only so: ~/m, run=3."""
    name, _, value = word.partition("=")
    if name not in ("base", "experts", "tasks") or re.fullmatch(r"\w+\(.*\)", value):
        return word  # a sweep, such as choice(A,B)
    return f"{name}={_ELEMENT.sub(_element, value)}"


def _element(found: re.Match[str]) -> str:
    before, bare = found.groups()
    return before + (bare if _BARE.fullmatch(bare) else spelt(bare.rstrip()))


def _long(word: str) -> str:
    name, _, value = word.partition("=")
    if name == "base" or (name == "experts" and value.startswith("{")):
        return f"experts.{name}={value}"
    if name == "budget" and re.match(r"-?[\d.]|null$", value):
        return f"budget.evaluations={value}"
    return word


def _check(words: Sequence[str]) -> None:
    for word in words:
        if re.match(r"experts=[^{\[=]+:", word):
            _refuse(f"{word}: the shell has taken the braces: write 'experts={{NAME:DIR,...}}'")
    if sum(word.startswith("tasks=") for word in words) > 1:
        _refuse("tasks= stands here twice: write one list, in quotes: 'tasks=[A,{task:B,...}]'")


def _check_panels(words: Sequence[str]) -> None:
    panel = rf"(evaluator@)?({'|'.join(_PANELS)})[.=]"
    for word in words:
        if re.match(rf"[+~]*{panel}", word):
            _refuse(
                f"tasks= makes the items of every panel, and {word} makes some too: leave one "
                "out; what a task's evaluator takes may stand in its entry, for example "
                "tasks=[{task:arc_easy,num_fewshot:5}]"
            )


def _refuse(sentence: str) -> None:
    print(f"{sys.argv[0]}: {sentence}", file=sys.stderr)
    sys.exit(2)
