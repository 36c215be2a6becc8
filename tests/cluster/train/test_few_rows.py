"""Fewer rows in a batch than workers: the same run as on one worker, each kind of training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import few_rows
import pytest
import torch.multiprocessing as mp
from alone import make_tokens

from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.train.worker import Worker
from model.checkpoint import save_model
from model.config import ModelConfig
from model.decoder import Decoder

KINDS = ["next_token", "masked_diffusion", "moe", "replay", "dpo", "grpo"]
TIMES = ("t", "tokens_per_second", "mfu")


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(kind, workers) -> the values of each point of its curve."""
    folder = tmp_path_factory.mktemp("few")
    tokens = make_tokens(folder / "tokens")
    config = ModelConfig(**few_rows.SHAPE).with_vocabulary(Tokenizer(tokens).vocab_size)
    (folder / "model").mkdir()
    save_model(Decoder(config).init_weights(0), folder / "model")
    Tokenizer(tokens).save(folder / "model")
    few_rows.run_rank(0, 1, str(tokens), str(folder), KINDS)
    mp.start_processes(few_rows.run_rank, args=(3, str(tokens), str(folder), KINDS), nprocs=3, start_method="spawn")

    def read(kind: str, workers: int) -> list[tuple[int, dict[str, float]]]:
        events = json.loads((Path(folder) / f"{kind}-{workers}" / "curve.json").read_text(encoding="utf-8"))
        return [(e["step"], {k: v for k, v in e["values"].items() if k not in TIMES}) for e in events]

    return read


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_smaller_than_the_workers_are_many_is_trained_on_as_by_one(curves: Any, kind: str) -> None:
    one, three = curves(kind, 1), curves(kind, 3)
    assert len(one) >= 4 and [step for step, _ in one] == [step for step, _ in three]
    for (_, expected), (_, values) in zip(one, three, strict=True):
        assert expected.keys() == values.keys()
        assert values == pytest.approx(expected, rel=2e-3, abs=2e-4)
        assert values.get("tokens") == expected.get("tokens"), "a row that only keeps a rank in step is no token"


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_that_see_different_checkpoints_train_nothing(monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    """A rank that resumes from a newer one than the others would train alone."""
    monkeypatch.setattr(Worker, "checkpoints", lambda self: SimpleNamespace(latest=lambda: (20, Path("nowhere"))))

    def others_see(step: int | None) -> None:
        def gather(found: list[Any], mine: Any) -> None:
            found[:] = [mine, *[step] * (world_size - 1)]

        monkeypatch.setattr("torch.distributed.all_gather_object", gather)

    worker = Worker(1, world_size, 0, "", "", None)
    others_see(20)
    assert worker.resume() == (20, Path("nowhere"))
    for step in (10, None):
        others_see(step)
        with pytest.raises(RuntimeError, match="different newest checkpoints"):
            worker.resume()
