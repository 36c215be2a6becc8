"""The gate lets a model pass for what its recipe names, and says why not."""

import math
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from cluster.evaluate.bits import not_measured, summarise
from cluster.release.gate import GateMetric, Requirement, judge
from cluster.release.summary import ReleaseSummary

BPB = GateMetric(metric="bpb", mode="min")
REWARD = GateMetric(metric="reward", mode="max", max_regression=0.1)


@pytest.mark.parametrize(
    ("value", "champion", "passes"),
    [
        (1.9, 2.0, True),
        (2.0, 2.0, False),
        (2.1, 2.0, False),
        (math.nan, 2.0, False),
        (math.inf, 2.0, False),
        (-math.inf, 2.0, False),  # better than all, and no score
    ],
)
def test_a_metric_must_be_better_than_the_champions(value, champion, passes):
    for sign, mode in ((1, "min"), (-1, "max")):
        verdict = judge({"m": sign * value}, {"m": sign * champion}, (GateMetric(metric="m", mode=mode),))
        assert verdict.passed is passes, (mode, verdict)


@pytest.mark.parametrize(("value", "passes"), [(0.6, True), (0.5, True), (0.41, True), (0.39, False)])
def test_a_metric_may_regress_by_what_is_allowed(value, passes):
    verdict = judge({"reward": value}, {"reward": 0.5}, (REWARD,))
    assert verdict.passed is passes
    assert ("0.39 is worse than the champion's 0.5 by more than 0.1" in verdict.reason) is not passes


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_regression_of_just_what_is_allowed_passes(mode):
    metric = GateMetric(metric="m", mode=mode, max_regression=0.25)
    worse = 0.75 if mode == "min" else 0.25
    assert judge({"m": worse}, {"m": 0.5}, (metric,)).passed
    further = worse + (0.01 if mode == "min" else -0.01)
    assert not judge({"m": further}, {"m": 0.5}, (metric,)).passed


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_champion_whose_score_is_not_finite_can_be_replaced(broken):
    assert judge({"bpb": 2.0, "reward": 0.0}, {"bpb": broken, "reward": broken}, (BPB, REWARD)).passed


def test_a_gate_that_asks_for_nothing_lets_every_model_pass():
    verdict = judge({"bpb": math.nan}, {"bpb": 1.0}, ())
    assert (verdict.passed, verdict.reason, verdict.rows) == (True, "all metrics hold", [])


def test_the_first_model_passes_if_its_metrics_are_there_and_finite():
    assert judge({"bpb": 9.0, "reward": 0.0}, None, (BPB, REWARD)).passed
    assert not judge({"bpb": math.nan, "reward": 0.0}, None, (BPB, REWARD)).passed
    missing = judge({"bpb/prose": 1.0, "bpbs": 2.0, "reward": 0.0}, None, (BPB, REWARD))
    assert not missing.passed
    assert "bpb: the evaluation has no such metric; did you mean 'bpbs'?" in missing.reason


def test_a_metric_of_a_source_without_held_out_text_fails_and_says_why():
    by_source = (GateMetric(metric="bpb/code", mode="min"), GateMetric(metric="bpb/other", mode="min"))
    why = not_measured(["code"], all_=False)
    metrics = summarise([{"source": "prose", "bytes": 9, "bpb": 1.0, "unigram_bpb": 2.0, "gzip_bpb": 3.0}])
    verdict = judge(metrics, {"bpb/code": 0.0}, by_source, (Requirement(metric="bpb/code", max=3),), why)
    assert not verdict.passed
    assert verdict.reason.count("it was not measured: there is no held-out text of the source 'code'") == 2
    assert "bpb/other: the evaluation has no such metric" in verdict.reason
    assert judge(metrics, None, (BPB,), (), why).passed, "the others have been measured"
    none = judge(summarise([]), None, (BPB,), (), not_measured(["code"], all_=True))
    assert none.reason == "bpb: it was not measured: there is no held-out text of any source"


def test_one_failure_fails_and_every_failure_is_told():
    verdict = judge({"bpb": 2.0, "reward": 0.0}, {"bpb": 2.0, "reward": 0.5}, (BPB, REWARD))
    assert not verdict.passed
    assert verdict.reason.count(";") == 1
    assert [r["metric"] for r in verdict.rows] == ["bpb", "reward"]


def test_a_champion_of_another_recipe_lacks_a_metric():
    assert judge({"bpb": 2.0}, {"other": 1.0}, (BPB,)).passed


@pytest.mark.parametrize(("value", "passes"), [(3.0, True), (3.1, False), (0.9, False), (1.0, True)])
def test_bounds_hold_with_and_without_a_champion(value, passes):
    bound = Requirement(metric="bpb", min=1.0, max=3.0)
    assert judge({"bpb": value}, None, (), (bound,)).passed is passes
    assert judge({"bpb": value}, {"bpb": 99.0}, (BPB,), (bound,)).passed is passes


def test_a_bound_without_bounds_is_refused():
    with pytest.raises(ValidationError, match="min, max or both"):
        Requirement(metric="bpb")


@pytest.mark.parametrize(
    ("aliases", "page", "screen"),
    [((), "Aliases: none", "(no alias)"), (("candidate", "champion"), "Aliases: @candidate, @champion", "@champion)")],
)
def test_a_version_is_shown_with_its_aliases(aliases, page, screen):
    summary = ReleaseSummary(name="m", version=3, aliases=aliases, gate={"passed": True, "reason": "the first"})
    first, second = summary.report(SimpleNamespace())[:2]
    assert page in first.body and second.body == "Gate passed: the first"
    assert screen in summary.closing()[0]
