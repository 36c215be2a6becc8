"""A new part is one file and one registration: then it is in the recipe, the plan, the closing table, the page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from cluster.store.artifact import Artifacts
from flows import closing, graph, line, plan
from flows.recipe_errors import RecipeError
from flows.recipe_read import read_recipe
from flows.run import Run

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


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A recipe for a line that has one more stage."""
    monkeypatch.setattr(graph, "LINE", list(graph.LINE))
    graph.register(graph.Place("counting", "tests.throw_away.counting:STAGE", writes=("numbers",)), after="pack")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thrown.toml").write_text(RECIPE)
    (tmp_path / "web.jsonl").write_text('{"text": "a"}\n')
    return tmp_path / "thrown.toml"


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
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    screen = io.StringIO()
    run = Run.open(read_recipe(str(counting)), "counting", Console(file=screen, width=120))
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        run.start()
        state: Any = line.orchestrate(run)
        run.close()
    assert state.is_completed()
    closing.show(run, run.screen.console)
    shown = screen.getvalue()
    assert shown.count("counted to 5") == 2 and "The last number was 5." in shown
    this_run = {"artifacts": {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}}}
    found = httpx.post(f"{prefect_api}/artifacts/filter", json=this_run, timeout=30).json()
    pages = {page["key"]: page["data"] for page in found}
    assert "All numbers up to 5." in pages["thrown-counting-report"]
    assert "counted to 5" in str(pages["thrown-stages"])
