"""What is in a fingerprint, and what is not."""

import os
import subprocess
import sys
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model
from tiny_stage import Config, Shape, line, stage

from cluster.identity import canonical_json, field_sides
from cluster.stage import (
    Step,
    digest_source,
    explain,
    fingerprint,
    identity,
    previous,
    run_step,
)
from cluster.store.artifact import Artifacts


def test_only_what_differs_from_its_default_is_in_the_identity():
    assert identity(Config()) == {}
    config = Config(text="b", shape=Shape(width=16), sources=["x"], workers=9)
    assert identity(config) == {"text": "b", "shape": {"width": 16}, "sources": ["x"]}


def test_what_only_changes_how_the_work_runs_leaves_the_fingerprint():
    changed = Config(workers=64, shape=Shape(kernel="flash"))
    assert fingerprint(line(changed)) == fingerprint(line())


@pytest.mark.parametrize(
    "config",
    [
        Config(text="b"),
        Config(rate=0.25),
        Config(shape=Shape(width=9)),
        Config(shape=Shape(layers=())),
        Config(sources=["x"]),
    ],
)
def test_what_changes_the_result_changes_the_fingerprint_of_all_that_follows(config):
    changed, before = line(config), line()
    assert fingerprint(changed.inputs["corpus"]) != fingerprint(before.inputs["corpus"])
    assert fingerprint(changed) != fingerprint(before)


def test_a_new_field_with_a_default_leaves_old_artifacts_valid():
    Grown = create_model("Grown", __base__=Config, extra_rule=(bool, False))
    old = Step("corpus", stage(), Config(text="x"), {})
    assert fingerprint(Step("corpus", stage(config=Grown), Grown(text="x"), {})) == fingerprint(old)
    assert fingerprint(Step("corpus", stage(config=Grown), Grown(text="x", extra_rule=True), {})) != fingerprint(old)


def test_a_new_version_of_a_stage_makes_all_that_follows_anew():
    assert fingerprint(line(version=2)) != fingerprint(line())


def test_the_name_of_a_step_is_not_in_its_fingerprint_and_the_role_of_an_input_is():
    corpus = line().inputs["corpus"]
    other = Step("other name", stage(name="documents"), Config(text="b"), {"corpus": corpus})
    assert fingerprint(other) == fingerprint(line())
    assert fingerprint(Step("filter", stage(name="documents"), Config(text="b"), {"base": corpus})) != fingerprint(
        line()
    )


def test_the_fingerprint_is_the_same_in_every_process():
    code = (
        "from cluster.stage import fingerprint\nfrom tests.cluster.tiny_stage import *\n"
        "c = Config(text='ü', rate=1, shape=Shape(layers=('a', 'b')), sources=['z', 'a'])\n"
        "print(fingerprint(line(c)))"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
        ).stdout.strip()
        for seed in ("0", "1")
    }
    prints.add(fingerprint(line(Config(text="ü", rate=1.0, shape=Shape(layers=("a", "b")), sources=["z", "a"]))))
    assert len(prints) == 1


def test_a_fingerprint_is_what_it_was_when_this_was_written():
    """A change here orphans every artifact that anyone has: it must be meant."""
    assert fingerprint(line(Config(text="b", rate=2, shape=Shape(width=16)))) == "078adedbfae292f6eed3"


def test_the_members_of_a_union_are_told_apart():
    class Uniform(BaseModel):
        kind: Literal["uniform"] = "uniform"
        size: int = 1

    class Normal(BaseModel):
        kind: Literal["normal"] = "normal"
        size: int = 1

    class Holder(BaseModel):
        noise: Uniform | Normal = Field(discriminator="kind")

    assert identity(Holder(noise=Uniform())) != identity(Holder(noise=Normal()))


def test_a_changed_default_of_a_nested_config_is_noticed_by_its_holder():
    class Outer(BaseModel):
        shape: Shape = Shape(width=32)

    assert identity(Outer(shape=Shape(width=8))) == {"shape": {}}
    assert identity(Outer()) == {}


def test_a_value_without_canonical_form_is_refused():
    class Loose(BaseModel):
        model_config = {"arbitrary_types_allowed": True}
        thing: object = None

    with pytest.raises(ValueError, match="thing holds a function"):
        identity(Loose(thing=test_a_value_without_canonical_form_is_refused))
    with pytest.raises(ValueError, match="rate = nan"):
        identity(Config(rate=float("nan")))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


class Anything(BaseModel):
    value: object = None


@given(json_like, json_like)
def test_equal_settings_and_only_they_have_one_identity(a, b):
    same = canonical_json(identity(Anything(value=a))) == canonical_json(identity(Anything(value=b)))
    assert same == (as_settings(a) == as_settings(b))


def as_settings(value):
    """1 and 1.0 are one setting, True is another."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return (type(value).__name__, value)
    if isinstance(value, (int, float)):
        return ("number", value)
    if isinstance(value, list):
        return [as_settings(v) for v in value]
    return {k: as_settings(v) for k, v in value.items()}


def test_every_field_is_on_one_side():
    assert field_sides(Config) == (["text", "rate", "shape", "sources"], ["workers"])
    assert field_sides(Shape) == (["width", "layers"], ["kernel"])


def sourced(path) -> Step:
    return line(external=lambda config: {"web": digest_source(path)})


def test_a_changed_source_changes_the_fingerprint(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    before = fingerprint(sourced(tmp_path))
    assert fingerprint(sourced(tmp_path)) == before
    os.utime(tmp_path / "a.txt", (5, 5))
    assert fingerprint(sourced(tmp_path)) == before
    (tmp_path / "a.txt").write_text("two", encoding="utf-8")
    assert fingerprint(sourced(tmp_path)) != before


def test_a_run_sees_one_state_of_its_sources(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    step = sourced(tmp_path)
    before = fingerprint(step)
    (tmp_path / "a.txt").write_text("two", encoding="utf-8")
    assert fingerprint(step) == before


def test_a_plan_names_the_field_that_changed(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    artifacts = Artifacts(tmp_path / "store")
    run_step(sourced(tmp_path / "a.txt"), artifacts)
    step = line(Config(shape=Shape(width=9, layers=("x", "attention")), text="b"), version=2)
    found = previous(step.inputs["corpus"], artifacts)
    assert found is not None
    assert explain(step.inputs["corpus"], found) == [
        "stage: corpus version 1 -> corpus version 2",
        'shape.layers: default -> ["x","attention"]',
        "shape.width: default -> 9",
        'text: default -> "b"',
        f'source web: "{found.external["web"]}" -> default',
    ]
    found = previous(step, artifacts)
    assert found is not None
    [reason] = explain(step, found)
    assert reason.startswith("input corpus: ")
    same = sourced(tmp_path / "a.txt")
    assert explain(same, found) == []
