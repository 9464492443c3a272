"""The nearest of the names that are known, for what a user has misspelt."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns the end of a message: the name nearest to `word`, "" where none is near.

    Example:
        >>> did_you_mean("strateg", ["space", "strategy"]), did_you_mean("x", ["space"])
        ('; did you mean strategy?', '')
    """
    names = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {names[0]}?" if names else ""
