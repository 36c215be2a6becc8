"""An error on any rank: it ends the run for all, at once, as itself."""

from __future__ import annotations

import pickle
import sys
import time
import traceback
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from cluster.errors import Missing, UserError
from cluster.session import ClusterConfig, Session
from cluster.stage import Stage, Step, Summary, Surroundings, run_step
from cluster.store.artifact import Artifacts
from cluster.train.failure import Failure, Link, RemoteTraceback, is_echo
from cluster.train.fit import fit
from cluster.train.loop import run_trainer
from cluster.train.worker import StoppedAt, Worker
from flows.faults import is_infrastructure_fault
from model.train_config import TrainConfig

WORDS = "the answer is 43"
MANY = 1_000_000  # steps: the run never ends by itself


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str  # step, batch, save
    rank: int
    kind: str = "ValueError"
    marker: str


class Odd(Exception):
    """Can't be made again from its words."""

    def __init__(self, first: str, second: str):
        super().__init__(f"{first} and {second}")


KINDS = {"ValueError": ValueError, "KeyError": KeyError, "UserError": UserError, "Odd": lambda w: Odd(w, w)}


def train_and_fail(worker: Worker, config: Config) -> dict | StoppedAt:
    """A training of a tiny model, of which one rank raises at its third step."""
    import torch

    from model.config import ModelConfig
    from model.decoder import Decoder
    from model.objectives.next_token import Batch, next_token

    begun = 0

    def fail(where: str) -> None:
        if where == config.where and worker.rank == config.rank and begun > 2:
            with Path(config.marker).open("a", encoding="utf-8") as file:
                file.write(f"{time.time()}\n")
            raise KINDS[config.kind](WORDS)

    def batches(step: int) -> Batch:
        nonlocal begun
        begun += 1
        fail("batch")
        tokens = torch.randint(0, 31, (2, 8), generator=torch.Generator().manual_seed(step))
        return Batch(tokens, tokens, torch.arange(8).expand(2, 8))

    def objective(model: Decoder, batch: Batch) -> Any:
        fail("step")
        return next_token(model, batch)

    def save(step: int, write: Any, keep: int = 2) -> None:
        fail("save")

    worker.save = save  # type: ignore[method-assign]
    model = Decoder(ModelConfig(vocab_size=31, d_model=16, n_layers=1, n_heads=2, max_seq_len=8)).init_weights(0)
    settings = TrainConfig(steps=MANY, batch_size=6, seq_len=8, checkpoint_every=4)
    return run_trainer(worker, model, batches, settings, objective)


def never_ends(ws: Any) -> Summary:
    fit(ws, train_and_fail, ws.config)
    return Summary()


STAGE = Stage("failing", "failing", 1, Config, never_ends)


@pytest.fixture(scope="module", autouse=True)
def workers_get_this_file() -> Iterator[None]:
    """Workers can't import a test's module, so its functions travel as they are."""
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def error_of(folder: Path, workers: int, **config: Any) -> tuple[BaseException, float]:
    """What the run raised, and how many seconds after the rank had."""
    marker = folder / "raised"
    step = Step(name="failing", stage=STAGE, config=Config(marker=str(marker), **config), inputs={})
    session = Session(ClusterConfig.model_validate({"workers": workers, "cpus_per_worker": 0.5}))
    with pytest.raises(Exception) as caught:
        run_step(step, Artifacts(folder / "store"), Surroundings(session))
    (at,) = marker.read_text(encoding="utf-8").split()  # once: no restart
    return caught.value, time.time() - float(at)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("where", ["step", "batch", "save"])
def test_a_rank_that_fails_alone_ends_the_run_for_all_within_10_s(
    ray_local: Any, tmp_path: Path, where: str, workers: int
) -> None:
    error, seconds = error_of(tmp_path, workers, where=where, rank=workers - 1)
    assert type(error) is ValueError and str(error) == WORDS
    print(f"{where} on {workers} workers: {seconds:.1f} s after the rank had raised")
    assert seconds < 10
    assert f"in {'objective' if where == 'step' else where}" in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_error_comes_as_itself_with_its_traceback(ray_local: Any, tmp_path: Path, kind: str) -> None:
    error, _ = error_of(tmp_path, 0, where="batch", rank=0, kind=kind)
    assert type(error).__name__ == kind
    assert str(error) == {"KeyError": repr(WORDS), "Odd": f"{WORDS} and {WORDS}"}.get(kind, WORDS)
    assert isinstance(error, UserError) == (kind == "UserError")
    text = "".join(traceback.format_exception(error))
    assert "RemoteTraceback" in text and "in batches" in text and not is_infrastructure_fault(error)


def carried(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return Failure.of(1, caught).error()


@pytest.mark.parametrize(
    "error", [UserError("no"), Missing("there"), KeyError("k"), Odd("a", "b"), OSError(28, "full")], ids=repr
)
def test_an_error_that_was_carried_has_its_kind_and_its_words(error: Exception) -> None:
    back = carried(error)
    assert type(back).__name__ == type(error).__name__ and str(back) == str(error)
    assert isinstance(back, UserError) == isinstance(error, UserError)
    assert isinstance(back.__cause__, RemoteTraceback) and "rank 1" in str(back.__cause__)


@pytest.mark.parametrize("user", [True, False])
def test_an_error_whose_class_is_not_here_has_its_name_and_its_words(user: bool) -> None:
    gone = pickle.dumps(Fraction(1, 2)).replace(b"fractions", b"fractionz")  # a module that only the worker has
    error = Link("their.errors", "Odd", "it broke", user, gone).error()
    assert str(error) == "it broke" and isinstance(error, UserError) == user
    assert user or (type(error).__module__, type(error).__name__) == ("their.errors", "Odd")


def test_what_an_error_was_raised_from_is_carried_too() -> None:
    """A store that was away on a worker is worth another attempt of the stage."""
    outer = RuntimeError("the store gave up")
    outer.__cause__ = ConnectionResetError("by peer")
    back = carried(outer)
    assert isinstance(back.__cause__, ConnectionResetError) and isinstance(back.__cause__.__cause__, RemoteTraceback)
    assert is_infrastructure_fault(back) and not is_infrastructure_fault(carried(RuntimeError("a bug")))


def test_what_a_collective_raises_is_an_echo_of_another_rank() -> None:
    def raised_in(module: str, kind: str) -> BaseException:
        space = {"__name__": module}
        exec(f"def collective(): raise {kind}('Connection closed by peer')", space)
        with pytest.raises(Exception) as caught:
            space["collective"]()  # type: ignore[operator]
        return caught.value

    assert is_echo(raised_in("torch.distributed.distributed_c10d", "RuntimeError"))
    assert not is_echo(raised_in("torch.distributed.distributed_c10d", "ValueError"))  # wrong arguments
    assert not is_echo(raised_in("cluster.train.loop", "RuntimeError"))
