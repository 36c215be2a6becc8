"""The kinds of decoding by their words, as in `--decoding beam:n=4`; a new one is a file and a line here. No torch.

A kind's class is imported when it is asked for: method.py says what it has to do.
"""

from functools import cache
from importlib import import_module
from typing import Any

from model.checks import choose
from model.errors import UserError
from model.generate.words import made, parsed, written

PLAIN = "plain"  # token after token, or by unmasking: what a model does by itself
KINDS = {
    PLAIN: "",
    "best_of": "model.generate.best_of:BestOf",
    "self_consistency": "model.generate.self_consistency:SelfConsistency",
    "beam": "model.generate.beam:Beam",
    "contrastive": "model.generate.contrastive:Contrastive",
    "dola": "model.generate.dola:DoLa",
    "speculative": "model.generate.speculative:Speculative",
    "lookup": "model.generate.speculative:Lookup",
    "lookahead": "model.generate.lookahead:Lookahead",
}


@cache
def method(word: str) -> Any:
    """The `Method` that KIND:key=value,… says; None for "plain". UserError for none, or an option it can't have."""
    kind, given = parsed("decoding", word)
    choose("decoding", kind, tuple(KINDS))
    if kind == PLAIN:
        if given:
            raise UserError(f"decoding = {word!r}: plain has no options of its own")
        return None
    module, _, name = KINDS[kind].partition(":")
    return made("decoding", kind, getattr(import_module(module), name), given)


def gathered(table: dict[str, Any], own: tuple[str, ...]) -> dict[str, Any]:
    """`{kind = "beam", n = 4, seed = 1}` of a recipe with the kind's options in its word: `beam:n=4`.

    own: the names of the options that every decoding has; what isn't among them is the kind's.
    """
    word = table.get("kind")
    if not isinstance(word, str):
        return table
    kind, given = parsed("decoding", word)
    more = {key: value for key, value in table.items() if key not in own}
    for key in more.keys() & given.keys():
        raise UserError(f"decoding = {word!r} and {key} = {more[key]!r}: give it once")
    rest = {key: value for key, value in table.items() if key in own}
    return rest | {"kind": written(kind, given | more)}
