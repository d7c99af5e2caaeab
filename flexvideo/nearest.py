"""A guess at the name that was meant."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The known name nearest to a mistyped one, as a sentence after a message; empty where none is near.

    Args:
        given: what was typed; capitals and signs do not count.
        known: the names there are.

    Example:
        >>> did_you_mean("StaticTokens", ["static-patch", "static-tokens"])
        " Did you mean 'static-tokens'?"
    """
    folded = {_folded(name): name for name in known}
    near = get_close_matches(_folded(given), folded, n=1, cutoff=0.75)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
