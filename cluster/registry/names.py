"""What the registry takes as a model's name: the one place that knows.

MLflow itself refuses `/` and `:` (mlflow/utils/validation.py, `_validate_model_name`), takes `@` though
`models:/a@b@champion` then names two things, can't search for a name with both kinds of quotes, cuts a URI at `?`,
and refuses a dot and a `%` in the name of the logged model behind a version. A name is also a folder's and a log
file's, and a word on the command line.
"""

from __future__ import annotations

import unicodedata

from cluster.errors import UserError

LONGEST = 200  # bytes: with what is put after it, it is still a file's name
ALLOWED = "letters, digits, dashes, dots and underscores, and it begins with a letter or a digit"


def checked_name(name: str) -> str:
    """The name, if the registry takes it and `models:/NAME@ALIAS` and `models:/NAME/1` then name one thing.

    Raises:
        UserError: it doesn't; the message is what is allowed, and what of the name is not.
    """
    wrong = sorted({c for c in name if not (_is_word(c) or c in "._-")})
    if wrong:
        raise UserError(f"{ALLOWED}; not {' '.join(repr(c) for c in wrong[:8])}.")
    if not name or unicodedata.category(name[0])[0] not in "LN":
        raise UserError(f"{ALLOWED}.")
    size = len(name.encode())
    if size > LONGEST:
        raise UserError(f"at most {LONGEST} bytes long; this one has {size}.")
    return name


def logged_name(name: str) -> str:
    """The name of the logged model behind a version: `_validate_logged_model_name` refuses more characters."""
    return "".join("_" if c in "/:.%\"'" else c for c in name)


def _is_word(c: str) -> bool:
    return unicodedata.category(c)[0] in "LMN"
