"""How a text is decoded from a model: length, distribution, seed, end and strategy.

Each option is said once, here: a field that is added is, the same day, an option of `generate` and `chat`, a parameter
of the registered model and a key of an evaluation's recipe. No torch, so that those are quick.

    Decoding()   the model's own distribution, nothing truncated      TEXT, CHAT   what people see by default
                                                                      GREEDY       the likeliest token each time
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_origin

from model.errors import UserError
from model.generate.option import check_options, option
from model.generate.unmasking import Unmasking


@dataclass(frozen=True, kw_only=True)
class Decoding(Unmasking):
    """UserError for a value out of its range. A strategy's part is a class that this one inherits from.

    stops: texts, and in code ids too, of tokens that end the answer.
    """

    max_new_tokens: int = option(64, "Tokens to generate, at most.", ge=1)
    temperature: float = option(1.0, "0 takes the likeliest token each time.", ge=0.0)
    top_k: int = option(0, "Keep so many of the likeliest tokens; 0: all.", ge=0)
    top_p: float = option(1.0, "Keep the likeliest tokens up to this mass.", gt=0.0, le=1.0)
    min_p: float = option(0.0, "Keep tokens of at least this share of the likeliest one's probability.", ge=0.0, le=1.0)
    repetition_penalty: float = option(1.0, "Hold down tokens that are there already; 1: don't.", gt=0.0)
    seed: int = option(0, "The same seed gives the same text.")
    stops: tuple[str | int, ...] = option((), "A text that ends the answer, and isn't in it.")

    def __post_init__(self) -> None:
        check_options(self)
        if "" in self.stops:
            raise UserError("stops has an empty text, which would end every answer before it begins")
        for stop in self.stop_ids:
            if not 0 <= stop < 1 << 63:
                raise UserError(f"stops has {stop}, which is no token's id")

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return tuple(stop for stop in self.stops if isinstance(stop, str))

    @property
    def stop_ids(self) -> list[int]:
        return [stop for stop in self.stops if not isinstance(stop, str)]

    def ended_by(self, ids: Iterable[int]) -> "Decoding":
        """For a sampler, which knows no texts: `stops` are the ids in it and these."""
        return replace(self, stops=(*ids, *self.stop_ids))

    @property
    def unmasks(self) -> tuple[str, ...]:
        """The names of what is said of unmasking: of a causal model nothing may be."""
        return tuple(name for name, f in OF_UNMASKING.items() if getattr(self, name) != f.default)

    def read(self, given: Mapping[str, Any]) -> "Decoding":
        """These options with those in `given` that aren't None, each made its field's type; unknown names are left."""
        found = {f.name: given[f.name] for f in OPTIONS if given.get(f.name) is not None}
        return replace(self, **{name: _typed(name, value) for name, value in found.items()})


def _written(annotation: Any) -> type:
    """What a value is where there are only numbers and texts: int, float, str, or tuple for several texts."""
    if annotation in (int, float):
        return annotation
    return tuple if get_origin(annotation) is tuple else str


def _typed(name: str, value: Any) -> Any:
    """UserError for a value that isn't the option's, and for 2.5 where a whole number must be: nothing is rounded."""
    kind = TYPES[name]
    if kind is tuple:
        return (value,) if isinstance(value, str) else tuple(value)
    try:
        made = kind(value)
    except (TypeError, ValueError, OverflowError):
        made = None
    if made is None or isinstance(value, bool) or (kind is int and not isinstance(value, str) and made != value):
        words = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} = {value!r} must be {words}.")
    return made


OF_UNMASKING = {f.name: f for f in fields(Unmasking)}
OPTIONS = tuple(sorted(fields(Decoding), key=lambda f: f.name in OF_UNMASKING))  # the strategy's part last
TYPES = {f.name: _written(f.type) for f in OPTIONS}

GREEDY = Decoding(temperature=0.0)
TEXT = Decoding(temperature=0.8, top_p=0.95)
CHAT = Decoding(max_new_tokens=128, temperature=0.7, top_p=0.95)
