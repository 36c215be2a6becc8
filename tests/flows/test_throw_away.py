"""A new part is one file and one registration: then it is in the recipe, the plan, the closing table, the page."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from cluster.data.filters import registry as filters
from cluster.store.artifact import Artifacts
from flows import closing, graph, plan
from flows.prefect_mirror import Mirror
from flows.recipe_errors import RecipeError
from flows.recipe_read import read_recipe
from flows.run import Run
from flows.walk import walk
from model import mixers, objective
from tests.throw_away.shouting import Shouting

RECIPE = """
name = "thrown"
[[sources]]
name = "web"
path = "web.jsonl"
[counting]
up_to = 5
[tracking]
system_metrics = false
"""
THREE = """
name = "three"
[[sources]]
name = "web"
path = "web.jsonl"
[filter]
rules = ["shouting"]
dedup = { near = false }
[tokenizer]
vocab_size = 300
[model]
pattern = ["halving"]
d_model = 32
n_layers = 1
n_heads = 2
[train]
objective = "repeat"
steps = 3
seq_len = 32
batch_size = 2
[cluster]
workers = 0
[tracking]
system_metrics = false
"""


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A recipe for a line that has one more stage."""
    monkeypatch.setattr(graph, "LINE", list(graph.LINE))
    graph.register(graph.Place("counting", "tests.throw_away.counting:STAGE", writes=("numbers",)), after="pack")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thrown.toml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "web.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    return tmp_path / "thrown.toml"


@pytest.fixture
def three_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A recipe with a filter, an objective and a mixer of its own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # Ray's workers import the filter
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(mixers.MIXERS, "halving", "tests.throw_away.halving:Halving")
    repeat = objective.Objective("tests.throw_away.repeat:Repeat", 0, True, "looks at a token", "causal", "exact")
    monkeypatch.setitem(objective.OBJECTIVES, "repeat", repeat)
    filters.register(Shouting)
    texts = [f"The number {n} is followed by {n + 1}, and {n * n} is its square." for n in range(400)]
    (tmp_path / "web.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in [*texts, "A LOUD TEXT"]), encoding="utf-8"
    )
    (tmp_path / "three.toml").write_text(THREE, encoding="utf-8")
    yield tmp_path / "three.toml"
    del filters.FILTERS["shouting"]
    filters._declare()


@pytest.mark.slow
def test_a_filter_an_objective_and_a_mixer_are_in_the_recipe_the_plan_the_closing_table_and_on_the_page(
    three_parts: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(str(three_parts))
    out = io.StringIO()
    plan.show(recipe, graph.graph(recipe), Artifacts(recipe.store.url), Console(file=out, width=160))
    rows = {row.split()[0]: row for row in out.getvalue().splitlines() if " runs " in row}
    assert "shouting" in rows["filter"] and "halving, repeat, 3 steps" in rows["pretrain"]
    screen, pages = go(recipe, "pretrain", prefect_api, monkeypatch)
    assert "1 removed (shouting.max_capitals 1)" in screen and "parameters of halving" in screen
    assert r"| shouting.max\_capitals | 1 |" in pages["three-filter-report"]
    assert "Trained by repeat." in pages["three-pretrain-report"] and "of halving" in str(pages["three-stages"])


def test_a_stage_has_its_table_in_the_recipe_and_its_errors_are_like_all_others(counting: Path) -> None:
    recipe = read_recipe(str(counting))
    names = [step.name for step in graph.graph(recipe)]
    assert names.index("counting") == names.index("pack") + 1
    assert graph.graph(read_recipe(str(counting), ["counting.up_to=7"]))[names.index("counting")].config.up_to == 7
    assert "counting" not in [s.name for s in graph.graph(read_recipe(str(counting), ["counting=false"]))]
    with pytest.raises(RecipeError, match=r"counting\.upto(.|\n)*Did you mean up_to"):
        read_recipe(str(counting), ["counting.upto=7"])


def test_a_stage_is_in_the_plan_with_its_cost(counting: Path) -> None:
    out = io.StringIO()
    recipe = read_recipe(str(counting))
    steps = graph.until(graph.graph(recipe), "counting")
    plan.show(recipe, steps, Artifacts(recipe.store.url), Console(file=out, width=120))
    rows = [text.split() for text in out.getvalue().splitlines() if text.startswith("counting")]
    assert rows[0][:2] == ["counting", "5"] and rows[1][:2] == ["counting", "runs"]


def test_a_stage_is_on_the_screen_in_the_closing_table_and_on_prefect_s_page(
    counting: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, pages = go(read_recipe(str(counting)), "counting", prefect_api, monkeypatch)
    assert shown.count("counted to 5") == 2 and "The last number was 5." in shown
    assert r"All numbers up to 5\." in pages["thrown-counting-report"]
    assert "counted to 5" in str(pages["thrown-stages"])


def go(recipe: Any, until: str, api: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """Runs the line through Prefect: what the screen shows, and Prefect's artifacts by key."""
    monkeypatch.setenv("PREFECT_API_URL", api)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    screen = io.StringIO()
    run = Run.open(recipe, until, Console(file=screen, width=160))
    with temporary_settings({PREFECT_API_URL: api}):
        run.start()
        run.watcher = Mirror(run).start()
        ending = walk(run)
        run.close()
    assert ending.kind == "completed", run.errors
    closing.show(run, run.screen.console)
    this_run = {"artifacts": {"flow_run_id": {"any_": [run.watcher.flow_run_id]}}}
    found = httpx.post(f"{api}/artifacts/filter", json=this_run, timeout=30).json()
    return screen.getvalue(), {page["key"]: page["data"] for page in found}
