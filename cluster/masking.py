"""Passwords, keys and tokens: kept out of every text that is shown, sent or written down.

    http://ann:pw@host/?token=x ── put_away ──▶ http://***@host/?token=***     what configs, files and pages hold
                                ◀── taken_out ──                               where it is dialled, and only there
    any text ── masked ──▶ the same without what looks like a secret, or is one of this process's environment

An address is put away where it comes in (a recipe's values, a variable), so that what is made from it (a manifest, a
fingerprint, MLflow's parameters, Prefect's database) never has the secret. `masked` stands where text goes out (the
screen, the log file, events, Prefect), for what libraries put into the words of their exceptions.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import traceback
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from cluster import secret_forms
from cluster.errors import UserError
from cluster.secret_forms import MASK, PARAMETER, SCHEME

# Words of a variable's name, or of a key, whose value is a secret. (TOKENIZERS_PARALLELISM and RAY_AUTH_MODE aren't.)
NAMES = re.compile(
    r"(?:^|[_.-])(?:passw(?:or)?d|passphrase|secret|token|credentials?|api[_-]?key|access_?key(?:_?id)?|private_?key"
    r"|secret_?key|account_?key|authorization|auth_string|secret_access_key|connection_string|connection_url)$",
    re.IGNORECASE,
)
SHORTEST = 6  # of a secret that is looked for by itself: a shorter one, or a plain word, is in too many texts
_guard = threading.Lock()
_whole: dict[str, str] = {}  # an address as it is shown -> with its secrets
_learnt: set[str] = set()


def masked(text: str) -> str:
    """The text without secrets. An ordinary text, and an ordinary URL, is returned as it is."""
    known = _known(tuple(_of_environment(os.environ)), tuple(_learnt))
    if known is not None:
        text = known.sub(MASK, text)
    return secret_forms.everything(text)


def put_away(address: str) -> str:
    """An address as it may be shown; its secrets are kept in this process's memory, for `taken_out`."""
    shown = without_secrets(address)
    if shown != address:
        with _guard:
            _whole[shown] = address
            _learnt.update(_parts_of(address))
    return shown


def taken_out(shown: str) -> str:
    """The address with its secrets, to dial it.

    Raises:
        UserError: a mask stands where they were, and this process was never given them.
    """
    whole = _whole.get(shown, shown)
    if whole is shown and (f"://{MASK}@" in shown or f"={MASK}" in shown):
        raise UserError(
            f"{shown}: what stands as {MASK} is a user and password, or a token, which are never written down. Give "
            "the address with them again, or in the environment (for MLflow MLFLOW_TRACKING_URI, or "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)."
        )
    return whole


def put_away_all(value: Any, key: str = "") -> Any:
    """A recipe's values with every address in them put away, and every value under a name such as `password`."""
    if isinstance(value, Mapping):
        return {k: put_away_all(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [put_away_all(v, key) for v in value]
    if not isinstance(value, str):
        return value
    if value and (NAMES.search(key) or key.lower() == "pwd"):  # in the environment it is the working folder
        with _guard:
            _learnt.add(value)
        return MASK
    return put_away(value)


def masked_all(value: Any) -> Any:
    """Plain JSON with every text in it masked."""
    if isinstance(value, Mapping):
        return {k: masked_all(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked_all(v) for v in value]
    return masked(value) if isinstance(value, str) else value


def without_secrets(address: str) -> str:
    """A whole address without its secrets, by its form alone; any other text as it is."""
    if any(c.isspace() for c in address):
        return address
    if "://" in address:
        return secret_forms.parameters(secret_forms.logins(address))
    return secret_forms.bare_logins(address)


def login_of(address: str) -> tuple[str, str, str]:
    """(the address without its login, user, password), unquoted; "" for what it has not."""
    scheme, mark, rest = address.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login, at, host = authority.rpartition("@")
    if not mark or not at:
        return address, "", ""
    user, _, password = login.partition(":")
    return f"{scheme}://{host}{rest[len(authority) :]}", unquote(user), unquote(password)


def _parts_of(address: str) -> set[str]:
    """The password and the tokens of an address, as they are written and unquoted."""
    found = set()
    for login in re.findall(rf"{SCHEME}([^\s]*)@", address) or re.findall(r"^([^\s]*)@", address):
        user, colon, password = login.partition(":")
        found.add(password if colon else user)
        if address.startswith("s3://"):
            found.add(user)
    found.update(re.findall(rf"(?i)[?&#;]{PARAMETER}=([^\s&#]+)", address))
    return found | {unquote(one) for one in found}


def _of_environment(environment: Mapping[str, str]) -> list[str]:
    """The secrets in the values of variables: of those whose name says so, and of addresses."""
    found: set[str] = set()
    for name, value in environment.items():
        if NAMES.search(name):
            found.add(value)
            found.add(value.partition(":")[2] if name.endswith("AUTH_STRING") else value)
        elif "@" in value and without_secrets(value) != value:
            found |= _parts_of(value)
    return sorted(found)


@functools.lru_cache(maxsize=8)
def _known(environment: tuple[str, ...], learnt: tuple[str, ...]) -> re.Pattern[str] | None:
    """One pattern for all secrets that are known by themselves, as they are and as a URL quotes them."""
    words = {form for one in (*environment, *learnt) if _is_telling(one) for form in (one, quote(one, safe=""))}
    if not words:
        return None
    either = "|".join(re.escape(word) for word in sorted(words, key=lambda w: (-len(w), w)))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{either})(?![A-Za-z0-9])")


def _is_telling(secret: str) -> bool:
    plain_word = secret.isalpha() and secret.islower() and len(secret) < 12
    return len(secret) >= SHORTEST and not plain_word and secret != MASK and not secret.isspace()


# -- Python's logging --------------------------------------------------------------------------------------------------


def guard_logs() -> None:
    """Every record of this process's logging, whoever writes it and wherever it goes, is masked as it is made."""
    made_by = logging.getLogRecordFactory()
    if getattr(made_by, "masks", False):
        return

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = made_by(*args, **kwargs)
        try:
            text = made.getMessage()
        except Exception:  # wrong arguments: logging itself says so, later
            return made
        shown = masked(text)
        if shown != text:
            made.msg, made.args = shown, None
        if made.exc_info and made.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*made.exc_info)).rstrip("\n")
            shown = masked(trace)
            if shown != trace:  # each Formatter takes the text that is there already
                made.exc_text = shown
                made.exc_info = None
        return made

    record.masks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
