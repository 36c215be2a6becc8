"""The loop: one result whatever the micro-batches, the workers and the interruptions."""

import json
import math
import time
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from small_models import SHAPES, lively, random_tokens
from two_workers import ARGUMENTS, ROWS, global_batch, run_failing_rank, run_rank

from model.checkpoint import load_model
from model.config import ModelConfig
from model.count import StepFlops, flops_per_token
from model.decoder import Decoder
from model.objectives.next_token import IGNORE, next_token
from model.segments import Segments
from model.train_config import TrainConfig
from model.trainer import Batch, StepReport, micro_batches, read_state, train

CONFIG = TrainConfig(
    steps=6, batch_size=ROWS, seq_len=16, lr=1e-2, warmup_steps=2, checkpoint_every=0, precision="fp32"
)


def batches(step: int) -> Batch:
    """Packed rows with an uneven number of ignored targets; a pattern that can be learned."""
    tokens = random_tokens(ROWS, 17, vocab_size=7, seed=step)
    targets = tokens[:, :-1].clone()  # repeat what was just read
    targets[step % ROWS, : 3 + step % 5] = IGNORE
    positions = torch.arange(16).expand(ROWS, 16).clone()
    positions[1, 9:] -= 9
    return Batch(tokens[:, :-1], targets, positions)


def run(config=CONFIG, shape="llama", **given):
    model = lively(SHAPES[shape])
    reports: list[StepReport] = []
    result = train(model, batches, config, on_step=reports.append, **given)
    return model, reports, result


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: Decoder, b: Decoder) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def curve(reports) -> list[tuple]:
    return [(r.step, r.loss, r.lr, r.grad_norm, r.tokens) for r in reports]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("cut", [1, 4])
def test_an_interrupted_run_equals_one_that_was_not_bit_for_bit(tmp_path, optimizer, cut):
    config = replace(CONFIG, optimizer=optimizer, schedule="wsd", z_loss=1e-3)
    whole, expected, _ = run(config)
    model = lively(SHAPES["llama"])
    first: list[StepReport] = []

    def stop_at_cut(report):
        first.append(report)
        return report.step == cut

    stopped = train(
        model,
        batches,
        config,
        on_step=stop_at_cut,
        save=lambda step, write: write(tmp_path / str(step), note=7),
    )
    assert stopped.stopped and stopped.step == cut
    state = read_state(tmp_path / str(cut))
    assert (state.step, state.extra) == (cut, {"note": 7})
    fresh = lively(SHAPES["llama"], seed=9)  # whatever it held is replaced
    rest: list[StepReport] = []
    result = train(fresh, batches, config, on_step=rest.append, resume=tmp_path / str(cut))
    assert not result.stopped and result.step == config.steps
    assert curve(first) + curve(rest) == curve(expected)
    assert same(whole, fresh)


def test_micro_batches_change_nothing_but_rounding():
    _, expected, _ = run(CONFIG)
    for size in (1, 3):
        _, given, _ = run(replace(CONFIG, micro_batch_size=size))
        for a, b in zip(given, expected, strict=True):
            assert a.loss == pytest.approx(b.loss, rel=1e-5) and a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)


def test_two_workers_get_the_result_of_one_and_stop_together(tmp_path):
    mp.start_processes(run_rank, args=(2, str(tmp_path)), nprocs=2, start_method="spawn")
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert ranks[0] == ranks[1], "every rank reports the same numbers and stops at the same step"
    # Rank 1 alone asked to stop after step 4: all stop with the next step, and the last one saved.
    assert ranks[0]["stopped"] and ranks[0]["step"] == 5 and ranks[0]["saved"] == [5]
    model = Decoder(ModelConfig(**ARGUMENTS)).init_weights(0)
    reports: list[StepReport] = []
    config = replace(CONFIG, steps=9)
    train(model, global_batch, config, on_step=lambda report: (reports.append(report), report.step == 5)[1])
    for (loss, norm, extras), expected in zip(ranks[0]["curve"], reports, strict=True):
        assert loss == pytest.approx(expected.loss, rel=1e-5)
        assert norm == pytest.approx(expected.grad_norm, rel=1e-4)
        loads = {name: value for name, value in extras.items() if "loss" not in name}
        assert loads == {name: expected.extras[name] for name in loads} and len(loads) == 7
    saved = load_model(tmp_path / "checkpoint")
    for a, b in zip(saved.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_rank_that_raises_leaves_no_other_waiting(tmp_path):
    """Without Ray: its process ends with its error, and that ends the others' all-reduce."""
    with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException)):
        mp.start_processes(run_failing_rank, args=(2, str(tmp_path)), nprocs=2, start_method="spawn")
    ended = time.time()
    raised = json.loads((tmp_path / "rank1.json").read_text(encoding="utf-8"))
    assert (raised["kind"], raised["words"]) == ("ValueError", "the answer is 43")
    assert ended - raised["at"] < 60  # of the half hour that a collective waits


def test_the_loss_falls_for_every_shape_and_optimizer(config):
    for optimizer in ("adamw", "muon"):
        model = lively(config)
        reports: list[StepReport] = []
        train(model, batches, replace(CONFIG, steps=25, optimizer=optimizer), on_step=reports.append)
        assert reports[-1].loss < 0.6 * reports[0].loss


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    def objective(model, batch):
        loss, count, _ = next_token(model, batch)
        objective.calls += 1
        return (loss * float("nan") if objective.calls == 2 else loss), count, {}

    objective.calls = 0
    model = lively(SHAPES["llama"])
    held = []
    result = train(
        model,
        batches,
        replace(CONFIG, steps=3, micro_batch_size=ROWS),
        objective=objective,
        on_step=lambda report: held.append((report.skipped, weights(model))) and None,
    )
    assert [skipped for skipped, _ in held] == [0, 1, 1] and result.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(held[0][1], held[1][1], strict=True))
    assert not torch.equal(held[1][1][0], held[2][1][0])


def test_a_report_s_numbers_are_what_they_say():
    model = lively(SHAPES["llama"])
    before = lively(SHAPES["llama"])
    reports: list[StepReport] = []
    config = replace(CONFIG, steps=1, grad_clip=0.01, weight_decay=0.0)
    train(model, batches, config, on_step=reports.append)
    batch = batches(0)
    hidden, _ = before(batch.tokens_BT, segments=Segments.from_positions(batch.positions_BT))
    loss = torch.nn.functional.cross_entropy(before.logits(hidden).flatten(0, 1), batch.targets_BT.flatten())
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in before.parameters()]).norm()
    (report,) = reports
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert report.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert report.tokens == ROWS * 16 and report.lr == pytest.approx(config.lr / 2)
    assert report.tokens_per_second == pytest.approx(report.tokens / report.seconds)
    assert 0 < report.mfu < 1


def test_checkpoints_come_when_due_and_at_the_end():
    steps: list[int] = []
    run(replace(CONFIG, checkpoint_every=4), save=lambda step, write: steps.append(step))
    assert steps == [4, 6]


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 4), (torch.bfloat16, 8)])
def test_a_micro_batch_has_more_rows_in_bf16(dtype, rows):
    batch = Batch(*(torch.zeros(20, 512, dtype=torch.long) for _ in range(3)))
    sizes = [part.tokens_BT.shape[0] for part in micro_batches(batch, TrainConfig(), dtype)]
    assert sizes == [rows] * (20 // rows) + [20 % rows] * (20 % rows > 0)


def test_extras_are_means_over_valid_tokens_whatever_the_micro_batch():
    def objective(model, batch):
        hidden, _ = model(batch.tokens_BT)
        return (
            hidden.square().sum(),
            (batch.targets_BT != IGNORE).sum(),
            {"ones": torch.tensor(8.0 * len(hidden))},
        )

    for size in (1, 4):
        reports: list[StepReport] = []
        config = replace(CONFIG, steps=1, micro_batch_size=size)
        train(lively(SHAPES["llama"]), batches, config, objective=objective, on_step=reports.append)
        valid = int((batches(0).targets_BT != IGNORE).sum())
        assert reports[0].extras == {"ones": pytest.approx(ROWS * 8 / valid)}


def test_a_step_without_a_valid_token_has_no_loss_and_changes_nothing_for_the_next():
    def objective(model, batch):
        loss, valid, extras = next_token(model, batch)
        return loss, valid, {**extras, "ones": torch.ones(())}

    def with_gap(step: int) -> Batch:
        batch = batches(step)
        return batch._replace(targets_BT=torch.full_like(batch.targets_BT, IGNORE)) if step == 1 else batch

    reports: list[StepReport] = []
    train(lively(SHAPES["llama"]), with_gap, CONFIG, objective=objective, on_step=reports.append)
    assert [math.isnan(r.loss) for r in reports] == [step == 1 for step in range(6)]
    assert math.isnan(reports[1].extras["ones"]) and all(math.isfinite(r.grad_norm) for r in reports)


def test_the_mfu_counts_the_flops_of_the_count_module():
    """On whole rows the two ways to count agree."""
    shape = SHAPES["gqa-qk-norm"]
    tokens = random_tokens(3, 16)
    batch = Batch(tokens, tokens, torch.arange(16).expand(3, 16))
    assert StepFlops(shape)(batch, 48) == pytest.approx(48 * flops_per_token(shape, 16))


def test_bf16_computes_in_bf16_and_keeps_weights_and_loss_in_fp32():
    """Slow without the instructions for it, but right; the curve stays near fp32's."""
    config = SHAPES["gqa-qk-norm"]
    curves = {}
    for precision in ("fp32", "bf16"):
        model = lively(config)
        reports: list[StepReport] = []
        train(model, batches, replace(CONFIG, steps=2, precision=precision), on_step=reports.append)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        curves[precision] = [r.loss for r in reports]
    assert curves["bf16"] != curves["fp32"]
    assert curves["bf16"] == pytest.approx(curves["fp32"], rel=0.03)
