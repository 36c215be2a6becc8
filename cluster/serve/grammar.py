"""A JSON schema, a regular expression or a grammar, as a matcher over a tokenizer's ids: by the library llguidance.

It was measured beside xgrammar and outlines-core on 50 random texts of a schema and of an expression: all of its texts
were valid, its compilation the quickest, and it brings no other package.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from model.generate.decoding import CONSTRAINTS, Decoding

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer

_tokenizers: weakref.WeakKeyDictionary[Tokenizer, Any] = weakref.WeakKeyDictionary()


def matcher(tokenizer: Tokenizer, decoding: Decoding) -> Callable[[], LlguidanceMatcher] | None:
    """Makes a matcher of what `decoding` constrains the output to; None where it doesn't.

    Raises UserError for a schema, an expression or a grammar that isn't one, and where the library isn't installed.
    """
    name = next((name for name in CONSTRAINTS if getattr(decoding, name)), None)
    if name is None:
        return None
    library, text = _library(name), getattr(decoding, name)
    own = library.LLMatcher
    if name == "json_schema":
        grammar = own.grammar_from_json_schema(text, defaults={"whitespace_flexible": False})
    else:
        grammar = own.grammar_from_regex(text) if name == "regex" else own.grammar_from_lark(text)
    whole = own(_known(library, tokenizer), grammar, log_level=0)
    if whole.is_error():
        raise UserError(f"{name} can't be followed: {whole.get_error().strip()}")
    return lambda: LlguidanceMatcher(whole.deep_copy())


class LlguidanceMatcher:
    """See `model.generate.constrained.Matcher`."""

    def __init__(self, matcher: Any):
        self.matcher = matcher

    def allowed(self) -> bytes:
        return self.matcher.compute_bitmask()

    def take(self, token: int) -> bool:
        self.matcher.consume_token(token)
        if self.matcher.is_error():
            raise UserError(f"The output can't be constrained any further: {self.matcher.get_error().strip()}")
        return self.matcher.is_stopped()

    def fork(self) -> LlguidanceMatcher:
        return LlguidanceMatcher(self.matcher.deep_copy())


class _Pieces:
    """A tokenizer as the library reads it."""

    def __init__(self, tokenizer: Tokenizer, end: int):
        pieces = tokenizer.pieces()
        self.eos_token_id, self.bos_token_id = end, None
        # What writes nothing has a name that no text has, by which the library knows a special token.
        self.tokens = [f"\xff<{i}>".encode("latin-1") if piece is None else piece for i, piece in enumerate(pieces)]
        self.special_token_ids = [i for i, piece in enumerate(pieces) if not piece]
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode(errors="replace"))


def _library(name: str) -> Any:
    try:
        return import_module("llguidance")
    except ImportError as error:
        raise UserError(
            f"{name} needs the package llguidance, which isn't installed: pip install 'tokenmill[constrained]'"
        ) from error


def _known(library: Any, tokenizer: Tokenizer) -> Any:
    if tokenizer not in _tokenizers:
        ends = [i for i in tokenizer.stop_ids if i >= 0]
        if not ends:
            raise UserError("The tokenizer has no token that ends a text, which a constrained one must be able to.")
        wrapped = library.TokenizerWrapper(_Pieces(tokenizer, ends[0]))
        _tokenizers[tokenizer] = library.LLTokenizer(wrapped, tokenizer.vocab_size, ends)
    return _tokenizers[tokenizer]
