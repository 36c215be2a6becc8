"""What a filter is: it keeps a document, or says why not.

    class Shouting(Filter[ShoutingThresholds]):
        name, config = "shouting", ShoutingThresholds                    its numbers: [filter.thresholds.shouting]

        def checks(self, texts):                                         (n,) values and a bound, rule by rule
            yield Check("max_capitals", capitals(texts), self.thresholds.max_capitals, lowest=False)

A filter is one file with such a class and one line in registry.py. It judges a batch of texts at once, so that its
values can be arrays over all of them. A document gets the first rule that it fails, "shouting.max_capitals", and the
value and the bound as its detail, "0.42 > 0.3". A filter that changes texts overrides `judge` in place of `checks`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict


class Thresholds(BaseModel):
    """A filter's numbers, with their published defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Verdict(NamedTuple):
    """What becomes of a document."""

    text: str  # with the lines removed that a line rule drops
    reason: str | None = None  # filter.rule, or None: it stays
    detail: str = ""  # the value and the bound


class Check(NamedTuple):
    """One rule over n documents: they fail where `values` lies beyond `bound`."""

    rule: str
    values: NDArray
    bound: float
    lowest: bool  # the bound is a minimum


T = TypeVar("T", bound=Thresholds)


class Filter(Generic[T]):
    """A set of rules under one name, with its thresholds. Travels to the workers, so it holds nothing else."""

    name: ClassVar[str]
    config: ClassVar[type[Thresholds]]

    def __init__(self, thresholds: T):
        self.thresholds = thresholds

    def checks(self, texts: list[str]) -> Iterable[Check]:
        """The filter's rules over n texts, in their order."""
        raise NotImplementedError(f"{type(self).__name__} has neither checks nor a judge of its own.")

    def judge(self, texts: list[str]) -> list[Verdict]:
        """A verdict for each text."""
        verdicts = [Verdict(text) for text in texts]
        for check in self.checks(texts):
            failed = check.values < check.bound if check.lowest else check.values > check.bound
            for place in np.flatnonzero(failed):
                if verdicts[place].reason is None:
                    detail = f"{check.values[place]:.4g} {'<' if check.lowest else '>'} {check.bound:g}"
                    verdicts[place] = Verdict(texts[place], f"{self.name}.{check.rule}", detail)
        return verdicts
