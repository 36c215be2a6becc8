"""`[quantize]` of a recipe: its steps in the line, and what doesn't go together, by file and line."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from cluster.store.artifact import Artifacts
from flows import plan
from flows.graph import graph
from flows.recipe_errors import RecipeError
from flows.recipe_read import read_recipe
from model.checkpoint import load_model, save_model
from model.quantize.calibrate import quantize
from tests.cluster.tiny_model import make_model

HEAD = """
name = "q"
[[sources]]
name = "prose"
path = "prose.jsonl"
[model]
d_model = 64
n_layers = 2
n_heads = 2
max_seq_len = 64
[train]
seq_len = 64
"""


def written(folder: Path, table: str, head: str = HEAD) -> str:
    (folder / "q.toml").write_text(f"{head}{table}\n", encoding="utf-8")
    (folder / "prose.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    return str(folder / "q.toml")


def test_the_model_is_evaluated_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    qat = '[quantize]\nkind = "int4"\n[quantize.qat.train]\nsteps = 5\nseq_len = 64'
    steps = graph(read_recipe(written(tmp_path, qat)))
    assert [s.name for s in steps][-4:] == ["evaluate-base", "qat", "quantize", "evaluate-quantized"]
    by_name = {s.name: s for s in steps}
    assert by_name["evaluate-base"].inputs["model"] is by_name["pretrain"]
    assert by_name["evaluate-quantized"].inputs["model"] is by_name["quantize"]
    assert by_name["quantize"].inputs["model"] is by_name["qat"] and by_name["qat"].config.train.steps == 5
    names = [s.name for s in graph(read_recipe(written(tmp_path, "[quantize]")))]
    assert "quantize" in names and "qat" not in names


def test_the_plan_says_what_it_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(written(tmp_path, '[quantize]\nkind = "int4"\nmethod = "gptq"'))
    out = io.StringIO()
    plan.show(recipe, graph(recipe), Artifacts(recipe.store.url), Console(file=out, width=160))
    assert "int4 by gptq, groups of 64" in out.getvalue()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('kind = "int5"', r"line 14(.|\n)*int8, int8-dynamic, int4"),
        ("group_size = 64", 'group_size is for kind = "int4"'),
        ('kind = "int4"\ngroup_size = 48', "32, 64, 128, 256"),
        ("act_order = true", 'act_order is for method = "gptq"'),
        ("calibration = {tokens = 5}", "'rtn' looks at no text"),
        ('method = "smoothquant"', "smoothquant helps INT8 activations"),
        ('kind = "int8-dynamic"\nmethod = "awq"', "awq is for weights alone"),
        ('kind = "int4"\nmethod = "gptq"\nqat = {}', "would undo that"),
        ('keep = ["*.dwn"]', r"'\*\.dwn' matches no linear"),
        ("[quantize.qat.train]\nseq_len = 65", "at most model.max_seq_len = 64"),
        ('[quantize.qat.train]\nseq_len = 64\nobjective = "masked_diffusion"', "quantize.qat.train.objective"),
    ],
)
def test_what_does_not_go_together_is_refused(table: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(written(tmp_path, f"[quantize]\n{table}"))
    text = str(error.value)
    assert re.search(said, text, re.S), text
    assert "q.toml" in text and "line 1" in text


def test_a_base_that_is_quantized_and_a_method_without_text_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "plain")
    head = f'name = "q"\nbase = "{tmp_path / "plain"}"\n'
    assert [s.name for s in graph(read_recipe(written(tmp_path, "[quantize]", head)))][:3] == [
        "base", "evaluate-base", "quantize",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"awq needs \[\[sources\]\]"):
        read_recipe(written(tmp_path, '[quantize]\nmethod = "awq"', head))
    with pytest.raises(RecipeError, match=r"quantize.qat(.|\n)*needs \[\[sources\]\]"):
        read_recipe(written(tmp_path, "[quantize]\nqat = {}", head))
    model = load_model(tmp_path / "plain")
    quantize(model, "int8")
    save_model(model, tmp_path / "plain")
    with pytest.raises(RecipeError, match=r"is quantized \(int8\), and \[quantize\] needs weights"):
        read_recipe(written(tmp_path, "[quantize]", head))
    assert read_recipe(written(tmp_path, "", head))
