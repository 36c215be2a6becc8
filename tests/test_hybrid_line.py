"""A model of every mixer there is, with experts, through the whole line and out of the registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.tiny_mlflow import sqlite_place
from tests.whole_line import STEPS, asked, curve, manifests, run

pytestmark = pytest.mark.slow


def test_it_becomes_a_champion_that_answers(tmp_path: Path, prefect_home: Path) -> None:
    sqlite_place(tmp_path)
    parts = {
        "pattern": ["mamba2", "rg_lru", "window", "linear_attention", "h3", "short_conv", "attention"],
        "n_layers": 7,
        "ff_pattern": ["dense", "moe"],
        "window": 16,
        "moe": {"n_experts": 4, "top_k": 2},
        "mamba2": {"d_state": 8, "head_dim": 16},
    }
    toml = {key: json.dumps(value) for key, value in parts.items() if not isinstance(value, dict)}
    toml |= {f"{key}.{k}": str(v) for key, value in parts.items() if isinstance(value, dict) for k, v in value.items()}
    sets = [word for key, value in toml.items() for word in ("--set", f"model.{key}={value}")]
    few = {
        "cluster.workers": 0, "train.steps": 20, "instruct.train.steps": 3, "rlhf.train.steps": 1,
        "rlhf.train.batch_size": 4, "rlhf.group_size": 2, "rlhf.heldout_items": 2, "rlhf.max_new_tokens": 6,
        "evaluate.validation_mb": 0.01, "evaluate.sample_tokens": 4, "evaluate.tasks.0.max_new_tokens": 6,
        "evaluate.tasks.0.data": "generated://arithmetic?n=2&digits=1",
        "evaluate.tasks.1.data": "generated://arithmetic?n=2&digits=1",
    }  # fmt: skip
    sets += [word for key, value in few.items() for word in ("--set", f"{key}={value}")]
    run(tmp_path, prefect_home, *sets)
    assert set(manifests(str(tmp_path / "store"))) == STEPS
    loss = [value for _, value, _ in curve(tmp_path / "store")]
    assert sum(loss[-5:]) / 5 < loss[0] - 0.3
    completed, answered = asked(tmp_path)
    assert isinstance(completed[0], str) and isinstance(answered[0], str)
