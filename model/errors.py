"""Whose mistake is it? `UserError` is the person's: what was given can't be done, said in words for whoever gave it.

Every other exception is a fault of the machine, of a service or of this code, and keeps its traceback. The words of a
`UserError` say what was given, what is allowed and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """What a person gave can't be done. Nothing is tried again, and no traceback is shown."""


class Missing(UserError, LookupError):
    """What a person named isn't there."""

    __str__ = Exception.__str__


class Newer(UserError):
    """What was written by a later version of this code, in a format that this one doesn't know."""


def nearest(word: str, names: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The names that look most like `word`, best first; case, dashes and underscores do not count."""
    plain = {name.lower().replace("-", "_"): name for name in map(str, names)}
    found = get_close_matches(word.lower().replace("-", "_"), list(plain), n=n, cutoff=cutoff)
    return [plain[f] for f in found]


def did_you_mean(word: str, names: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """` Did you mean 'NAME'?`, to end a sentence with; empty where no name is like `word`."""
    close = nearest(word, names, n, cutoff)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
