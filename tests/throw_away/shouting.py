"""A throw-away filter: what one file and one registration must be enough for."""

import numpy as np

from cluster.data.filters.contract import Check, Filter, Thresholds


class ShoutingThresholds(Thresholds):
    max_capitals: float = 0.3


class Shouting(Filter[ShoutingThresholds]):
    name, config = "shouting", ShoutingThresholds

    def checks(self, texts):
        capitals = np.array([sum(map(str.isupper, text)) / max(len(text), 1) for text in texts])
        yield Check("max_capitals", capitals, self.thresholds.max_capitals, lowest=False)
