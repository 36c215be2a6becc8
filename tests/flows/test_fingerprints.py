"""The names of what every recipe makes: a change of one is on purpose, or it makes users' work again for nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster import stage
from cluster.stage import fingerprint
from flows.graph import graph
from flows.recipe_read import read_recipe

KNOWN = json.loads((Path(__file__).parent / "fingerprints.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).parents[2]
SHIPPED = {path.stem for path in (ROOT / "flows" / "recipes").glob("*.toml")}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_recipe_s_fingerprints_are_those_that_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = graph(read_recipe(str(ROOT / f"{name}.toml") if "/" in name else name))
    # What the sources hold differs by machine, so each is given the same digest.
    monkeypatch.setattr(stage, "_external", {s: {"x": "y"} if s.stage.external else {} for s in steps})
    assert {step.name: fingerprint(step) for step in steps} == KNOWN[name]


def test_every_recipe_that_ships_is_known() -> None:
    assert {name for name in KNOWN if "/" not in name} == SHIPPED
