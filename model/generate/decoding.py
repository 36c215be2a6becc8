"""How a text is decoded from a model: kind, length, distribution, seed, end and strategy.

Each option is said once, here: a field that is added is, the same day, an option of `generate` and `chat`, a parameter
of the registered model and a key of an evaluation's recipe. No torch, so that those are quick.

    Decoding()   the model's own distribution, nothing truncated      TEXT, CHAT   what people see by default
                                                                      GREEDY       the likeliest token each time
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_origin

from model.errors import UserError
from model.generate import kinds
from model.generate.option import check_options, option
from model.generate.schedule import CONSTANT, check_schedule
from model.generate.unmasking import Unmasking

CONSTRAINTS = ("json_schema", "regex", "grammar")


@dataclass(frozen=True, kw_only=True)
class Decoding(Unmasking):
    """UserError for a value out of its range. A strategy's part is a class that this one inherits from.

    stops: texts, and in code ids too, of tokens that end the answer.
    """

    kind: str = option(kinds.PLAIN, f"How to decode, as KIND or KIND:key=value,…; {', '.join(kinds.KINDS)}.")
    max_new_tokens: int = option(64, "Tokens to generate, at most.", ge=1)
    min_new_tokens: int = option(0, "Tokens before it may end, as long as anything else may follow.", ge=0)
    temperature: float = option(1.0, "0 takes the likeliest token each time.", ge=0.0)
    temperature_schedule: str = option(
        CONSTANT, "The temperature over an answer's tokens: constant, linear:to=0.2,over=64 or cosine:to=0.2,over=64."
    )
    top_k: int = option(0, "Keep so many of the likeliest tokens; 0: all.", ge=0)
    top_p: float = option(1.0, "Keep the likeliest tokens up to this mass.", gt=0.0, le=1.0)
    min_p: float = option(0.0, "Keep tokens of at least this share of the likeliest one's probability.", ge=0.0, le=1.0)
    typical_p: float = option(1.0, "Keep the most typical tokens up to this mass.", gt=0.0, le=1.0)
    repetition_penalty: float = option(1.0, "Hold down tokens that are there already; 1: don't.", gt=0.0)
    presence_penalty: float = option(0.0, "Take this from the logit of each token that the answer has.")
    frequency_penalty: float = option(0.0, "Take this from a token's logit each time that the answer has it.")
    logit_bias: tuple[str, ...] = option((), "ID=NUMBER adds to a token's logit; -inf forbids it.")
    top_logprobs: int = option(0, "Show so many of the likeliest tokens beside each one.", ge=0)
    json_schema: str = option("", "A JSON schema that the answer must be of, as JSON.")
    regex: str = option("", "A regular expression that the answer must match.")
    grammar: str = option("", "A grammar, in Lark's notation, that the answer must be of.")
    seed: int = option(0, "The same seed gives the same text.")
    stops: tuple[str | int, ...] = option((), "A text that ends the answer, and isn't in it.")

    def __post_init__(self) -> None:
        check_options(self)
        check_schedule(self.temperature_schedule)
        if "" in self.stops:
            raise UserError("stops has an empty text, which would end every answer before it begins")
        for stop in self.stop_ids:
            if not 0 <= stop < 1 << 63:
                raise UserError(f"stops has {stop}, which is no token's id")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"min_new_tokens = {self.min_new_tokens} is more than max_new_tokens = {self.max_new_tokens}"
            )
        _ = self.biases
        constraints = [name for name in CONSTRAINTS if getattr(self, name)]
        if len(constraints) > 1:
            raise UserError(f"{' and '.join(constraints)}: an answer can be of one of them; give one")
        if self.json_schema:
            _check_schema(self.json_schema)
        if self.method and self.method.draws and self.greedy:
            raise UserError(f"{self.kind} draws several answers, which temperature = 0 would make the same one")
        if self.method and self.method.greedy_only and not self.greedy:
            raise UserError(
                f"{self.kind} takes the likeliest token each time: it needs temperature = 0 and no schedule of it"
            )

    @property
    def method(self) -> Any:
        """The `Method` of this kind; None where the model decodes by itself."""
        return kinds.method(self.kind)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 and self.temperature_schedule == CONSTANT

    @property
    def penalises(self) -> bool:
        """Whether what a token does to the distribution depends on what was there before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def biases(self) -> dict[int, float]:
        """What is added to which token's logit."""
        return dict(map(_bias, self.logit_bias))

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

    @property
    def said(self) -> str:
        """The options that are other than by default, for a message."""
        return ", ".join(f"{f.name} = {getattr(self, f.name)}" for f in OPTIONS if getattr(self, f.name) != f.default)

    def read(self, given: Mapping[str, Any]) -> "Decoding":
        """These options with those in `given` that aren't None, each made its field's type; unknown names are left."""
        found = {f.name: given[f.name] for f in OPTIONS if given.get(f.name) is not None}
        return replace(self, **{name: _typed(name, value) for name, value in found.items()})


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'json_schema is no JSON: {error}. Give a schema such as {{"type": "object"}}.') from None
    if not isinstance(schema, dict):
        raise UserError(f'json_schema = {text[:80]} must be a JSON object, such as {{"type": "object"}}.')


def _bias(word: str) -> tuple[int, float]:
    """UserError for what is no ID=NUMBER, and for a bias that makes one token the only one by +inf."""
    token, _, number = str(word).partition("=")
    try:
        made = int(token), float(number)
    except ValueError:
        made = -1, math.nan
    if made[0] < 0 or math.isnan(made[1]) or made[1] == math.inf:
        raise UserError(f"logit_bias = {word!r} must be ID=NUMBER: a token and what is added to its logit (or -inf).")
    return made


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
