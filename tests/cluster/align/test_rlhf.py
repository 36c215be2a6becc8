"""Policy and preference optimisation as batches: what is sampled, masked, rewarded and held out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_model import make_model

from cluster.align import instruct, rlhf
from cluster.align.config import PREFERENCE, RlhfConfig
from cluster.align.instruct import InstructConfig, InstructSummary
from cluster.align.preferences import Pair, Pairs
from cluster.align.rlhf import Alignment, RlhfSummary, rlhf_worker
from cluster.align.rollout import Rollouts
from cluster.align.split import split
from cluster.data.examples import examples
from cluster.data.held_out import question
from cluster.data.tokenizer.chat import Rendered
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.train.worker import Worker
from cluster.verify.verifiers import verify
from model import trainer
from model.checkpoint import load_model
from model.generate.decoding import Decoding
from model.objectives.logprobs import sequence_logprobs
from model.train_config import TrainConfig
from tests.cluster.train.alone import Alone, folder_of

TASKS = "generated://arithmetic?n=80&digits=1"
MOE = {"ff_pattern": ("moe",), "moe": {"n_experts": 4, "top_k": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), max_seq_len=128)


def config(**fields: Any) -> RlhfConfig:
    train = TrainConfig(steps=2, batch_size=24, seq_len=128)
    return RlhfConfig(**{"tasks": (TASKS,), "group_size": 4, "max_new_tokens": 6, "train": train, **fields})


def rollouts(folder: Path, settings: RlhfConfig, rank: int = 0, world_size: int = 1) -> Rollouts:
    worker = Worker(rank, world_size, 0, "", "", None)
    worker.mean = lambda sums: {name: total / max(n, 1) for name, (total, n) in sums.items()}  # type: ignore
    train, heldout = split(settings)
    models = load_model(folder), load_model(folder)
    return Rollouts(settings, *models, Tokenizer(folder), worker, train, heldout)


@pytest.mark.parametrize("heldout", [(), ("generated://arithmetic?n=20&digits=1&split=heldout",), (TASKS,)])
def test_no_conversation_is_both_trained_on_and_held_out(heldout: tuple[str, ...]) -> None:
    settings = config(heldout=heldout)
    if heldout == (TASKS,):  # all of it held out: nothing is left to train on
        with pytest.raises(ValueError, match="needs both"):
            split(settings)
        return
    train, held = split(settings)
    assert train and held
    assert not {question(item) for item in train} & {question(item) for item in held}


def test_a_held_out_question_is_not_trained_on_however_it_is_written(tmp_path: Path) -> None:
    def asks(text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}], "answer": "1", "verifier": "number"}

    same = [
        {"messages": [{"content": "0+1?", "role": "user"}]},
        {"messages": [{"role": "user", "content": "0+1?", "name": "me"}], "id": 7},
        {"messages": [{"role": "system", "content": "Count."}, {"role": "user", "content": "0+1?"}]},
        {"prompt": "0+1?"},
        {"messages": [{"role": "user", "content": " 0+1?\n"}]},
    ]
    other = {"messages": [*asks("0+1?")["messages"], {"role": "assistant", "content": "2"}, *asks("No?")["messages"]]}
    lines = [{"answer": "1", "verifier": "number", **item} for item in (*same, other, asks("1+1?"))]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "held.jsonl").write_text(json.dumps(asks("0+1?")), encoding="utf-8")
    settings = config(tasks=(str(tmp_path / "tasks.jsonl"),), heldout=(str(tmp_path / "held.jsonl"),))
    train, held = split(settings)
    assert [question(item) for item in train] == [question(other), question(asks("1+1?"))]
    assert [question(item) for item in held] == [question(same[0])]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # bf16 also where it is slow: two passes here are compared
@pytest.mark.parametrize("kind", [{}, MOE], ids=["dense", "moe"])
def test_before_the_update_the_ratio_is_one_and_at_the_first_step_the_kl_is_nought(
    folder: Path, tmp_path: Path, precision: Any, kind: dict
) -> None:
    train = TrainConfig(
        steps=2, batch_size=24, seq_len=128, precision=precision, micro_batch_size=5, lr=1e-2, warmup_steps=0
    )
    learner = rollouts(make_model(tmp_path, max_seq_len=128, **kind) if kind else folder, config(train=train))
    counter = iter(range(1000))
    learner._reward = lambda task, answer: float(next(counter) % 3 == 0)  # type: ignore
    gaps: list[Any] = []

    def objective(model: Any, batch: Any) -> Any:
        logp, mask = sequence_logprobs(model, batch.tokens_BT, batch.mask_BT).detach(), batch.mask_BT
        gaps.append(tuple(float((logp - old)[mask].abs().max()) for old in (batch.old_BT, batch.reference_BT)))
        return learner.objective(model, batch)

    reports: list[Any] = []
    trainer.train(learner.model, learner.batch, train, objective=objective, on_step=lambda r: bool(reports.append(r)))
    first, second = gaps[:5], gaps[5:]
    assert len(second) == 5 and max(max(gap) for gap in first) < 1e-6
    assert max(old for old, _ in second) < 1e-6 < min(reference for _, reference in second)
    assert reports[0].extras["clipped"] == reports[0].extras["kl"] == 0.0 < reports[1].extras["kl"]
    assert learner.batch(0).mask_BT.any(1).all() and not learner.batch(0).mask_BT[:, 0].any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["dpo", "ipo"])
def test_at_the_first_step_of_learning_from_pairs_the_margin_is_nought(
    folder: Path, precision: Any, method: Any
) -> None:
    train = TrainConfig(steps=1, batch_size=6, seq_len=128, precision=precision, micro_batch_size=4)
    settings = config(method=method, preferences=(TASKS,), train=train)
    learner = Pairs(
        settings, load_model(folder), load_model(folder), Tokenizer(folder), Worker(0, 1, 0, "", "", None),
        *split(settings),
    )  # fmt: skip
    reports: list[Any] = []
    trainer.train(
        learner.model, learner.batch, train, objective=learner.objective, on_step=lambda r: bool(reports.append(r))
    )
    assert abs(reports[0].extras["margin"]) < 1e-6


def test_answers_are_drawn_from_the_policy_s_own_distribution_and_end_at_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.align import rollout

    learner, drawn, generate = rollouts(folder, config()), [], rollout.generate
    monkeypatch.setattr(rollout, "generate", lambda *given, **k: drawn.append(given[2]) or generate(*given, **k))
    learner.batch(0)
    learner.score()
    own = Decoding(max_new_tokens=6, stops=(learner.tokenizer.end_id,))
    assert drawn == [own, replace(own, temperature=0.0), own]


def test_an_answer_that_is_cut_off_has_no_reward(folder: Path) -> None:
    learner = rollouts(folder, config(max_new_tokens=1))
    learner._answer = lambda prompts, *_: [done(learner.tokenizer, "The answer is 7.", ends) for ends in (True, False)]  # type: ignore
    task = {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "answer": "7", "verifier": "number"}
    whole, cut = learner._answer([], None, [])
    assert (learner._reward(task, whole), learner._reward(task, cut)) == (1.0, 0.0)
    assert verify(task, "The answer is 7.") == 1.0


def done(tokenizer: Tokenizer, text: str, ends: bool) -> Any:
    from model.generate.engine import Completion

    ids = tokenizer.encode(text)
    tokens = [*ids, tokenizer.end_id] if ends else ids
    return Completion(tokens, [0.0] * len(tokens), [0.0] * len(tokens), "stop" if ends else "length")


def test_advantages_sum_to_nothing_within_each_group(folder: Path) -> None:
    learner = rollouts(folder, config())
    counter = iter(range(1000))
    learner._reward = lambda task, answer: float(next(counter) % 3 == 0)  # type: ignore
    batch = learner.batch(0)
    assert torch.allclose(batch.advantage_B.view(-1, 4).sum(1), torch.zeros(6), atol=1e-6)
    assert batch.advantage_B.abs().max() > 0.1


def test_two_ranks_sample_what_one_would(folder: Path) -> None:
    whole = rollouts(folder, config()).batch(1)
    parts = [rollouts(folder, config(), rank, 2).batch(1) for rank in (0, 1)]
    texts = [row[mask].tolist() for p in parts for row, mask in zip(p.tokens_BT, p.mask_BT, strict=True)]
    assert texts == [row[mask].tolist() for row, mask in zip(whole.tokens_BT, whole.mask_BT, strict=True)]


def test_dapo_leaves_out_groups_whose_answers_are_all_alike(folder: Path) -> None:
    learner = rollouts(folder, config(method="dapo"))
    learner._reward = lambda task, answer: 1.0  # type: ignore
    assert learner.batch(0).weight_B.sum() == 0


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo"])
def test_a_step_on_pairs_makes_the_chosen_likelier(folder: Path, method: str) -> None:
    settings = config(method=method, preferences=(TASKS,), beta=0.5, train=TrainConfig(batch_size=16, seq_len=128))
    train, heldout = split(settings)
    worker = Worker(0, 1, 0, "", "", None)
    learner = Pairs(settings, load_model(folder), load_model(folder), Tokenizer(folder), worker, train, heldout)
    batch = learner.batch(0)
    losses = []
    optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.02)
    for _ in range(8):
        loss, count, _ = learner.objective(learner.model, batch)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert 0 <= learner.score()["heldout_reward"] <= 1


def test_the_masks_of_a_pair_cover_the_answers_and_nothing_of_the_prompt(folder: Path) -> None:
    settings = config(method="dpo", preferences=(TASKS,))
    train, heldout = split(settings)
    tokenizer = Tokenizer(folder)
    worker = Worker(0, 1, 0, "", "", None)
    learner = Pairs(settings, load_model(folder), load_model(folder), tokenizer, worker, train, heldout)
    item = examples.read_preferences(TASKS)[0]
    batch = learner._pack([learner._encode(item)])
    answer = batch.chosen_PT[0][batch.chosen_mask_PT[0]].tolist()
    assert tokenizer.decode(answer[:-1]) == item["chosen"] and answer[-1] == tokenizer.end_id


def test_pairs_are_scored_by_the_mean_of_a_token_however_long_the_answers_are(folder: Path) -> None:
    settings = config(method="dpo", preferences=(TASKS,))
    worker = Worker(0, 1, 0, "", "", None)
    worker.mean = lambda sums: {name: total / n for name, (total, n) in sums.items()}  # type: ignore
    learner = Pairs(settings, load_model(folder), load_model(folder), Tokenizer(folder), worker, *split(settings))
    ids = Tokenizer(folder).encode("Two plus three is five. The quick brown fox jumps over the lazy dog.")
    cuts = [(ids[: 4 + i], ids[2 : 20 - i]) for i in range(12)]
    pairs = [Pair(*(Rendered(side, [0, 0] + [1] * (len(side) - 2)) for side in cut)) for cut in cuts]
    learner.heldout = pairs * 3  # more than go through at once
    right = []
    for pair in learner.heldout:
        means = []
        for side, _ in (pair.chosen, pair.rejected):
            with torch.no_grad():
                logp = learner.model.logits(learner.model(torch.tensor([side]))[0]).log_softmax(-1)[0]
            means.append(logp[range(1, len(side) - 1), side[2:]].mean())
        right.append(bool(means[0] > means[1]))
    assert learner.score() == {"heldout_reward": pytest.approx(sum(right) / 36)} and 0 < sum(right) < 36


def test_a_summary_s_scores_are_in_a_manifest_by_name_and_read_back() -> None:
    summary = RlhfSummary(heldout_items=3, before={"heldout_reward": 0.2}, after={"heldout_reward": 0.5})
    values = summary.values()
    assert (values["heldout_reward_before"], values["heldout_reward_after"]) == (0.2, 0.5)
    assert RlhfSummary.read(values) == summary and "+0.300" in summary.closing()[0]


def test_a_resumed_alignment_remembers_the_scores_of_before_it_began(folder: Path, tmp_path: Path) -> None:
    settings = config(heldout_items=3, train=TrainConfig(steps=2, batch_size=8, checkpoint_every=1, lr=1e-2))
    first = Alone(tmp_path)
    whole = rlhf_worker(first, Alignment(settings, folder_of(folder)))
    assert isinstance(whole, dict) and [e["step"] for e in first.events] == [0, 1, 2, 2]
    values = {name: value + 1000 for name, value in first.events[0]["values"].items()}
    again = Alone(tmp_path)
    again.events = [{**first.events[0], "values": values}, *first.events[1:3]]
    again.resume = lambda: (2, tmp_path)  # type: ignore[method-assign, assignment, return-value]
    summary = rlhf_worker(again, Alignment(settings, folder_of(folder)))
    assert isinstance(summary, dict)
    assert {n: summary[f"{n}_before"] for n in values} == values
    assert {n: summary[f"{n}_after"] for n in values} == {n: whole[f"{n}_after"] for n in values}


def test_pairs_that_a_row_does_not_hold_are_counted_and_said(folder: Path) -> None:
    asked = [{"role": "user", "content": "Why?"}]
    pairs = [{"messages": asked, "chosen": "b" * n, "rejected": "c" * m} for n, m in ((3, 3), (3, 60), (60, 3), (9, 9))]
    settings = config(method="dpo", preferences=(TASKS,), train=TrainConfig(batch_size=2, seq_len=40))
    worker = Worker(0, 1, 0, "", "", None)
    learner = Pairs(settings, load_model(folder), load_model(folder), Tokenizer(folder), worker, pairs, pairs[:2])
    assert (len(learner.train), len(learner.heldout), learner.too_long) == (2, 1, 3)
    assert "3 pairs too long for a row left out" in RlhfSummary(loss=1.0, too_long=learner.too_long).words()
    assert RlhfSummary(too_long=0).words() == ""


def test_a_prompt_that_the_context_does_not_hold_is_refused_when_it_is_read(folder: Path) -> None:
    worker, task = Worker(0, 1, 0, "", "", None), {"prompt": "z" * 200, "answer": "1"}
    with pytest.raises(UserError, match=r"the prompt has 201 tokens, but the model's context .* is 128"):
        Rollouts(config(), load_model(folder), load_model(folder), Tokenizer(folder), worker, [task], [task])


def test_workers_find_data_whose_paths_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train's workers run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    given: list[Any] = []

    class Given(Exception):
        pass

    def fit(ws: Any, task: Any, payload: Any, on_event: Any) -> None:
        given.append(payload.config)
        raise Given

    asked = config(tasks=("d/t.jsonl", TASKS), heldout=("s3://b/h.jsonl",), preferences=("~/p.jsonl",))
    for module, settings in ((rlhf, asked), (instruct, InstructConfig.model_validate({"data": ["d/*.jsonl"]}))):
        monkeypatch.setattr(module, "fit", fit)
        run = module.run_rlhf if module is rlhf else module.run_instruct
        with pytest.raises(Given):
            run(SimpleNamespace(config=settings, inputs={"model": None, "tokens": None}))
    assert given[0] == asked.model_copy(
        update={"tasks": (f"{tmp_path}/d/t.jsonl", TASKS), "preferences": (str(Path("~/p.jsonl").expanduser()),)}
    )
    assert given[1].data == (f"{tmp_path}/d/*.jsonl",)


def test_chats_that_a_row_does_not_hold_are_said() -> None:
    words = InstructSummary(loss=1.0, examples=9, truncated=3, dropped=2).words()
    assert words == "loss 1.000, 3 of 9 chats cut at a row's end, 2 left out, their answers beyond it"
    assert InstructSummary(loss=1.0, examples=9).words() == "loss 1.000"


def test_no_answer_is_scored_with_a_seed_that_is_trained_on(folder: Path) -> None:
    learner = rollouts(folder, config(seed=3))
    seeds: list[int] = []
    answer = done(learner.tokenizer, "7", ends=True)

    def answers(prompts: list[Any], temperature: float, given: list[int]) -> list[Any]:
        if temperature:
            seeds.extend(given)
        return [answer] * len(prompts)

    learner._answer = answers  # type: ignore[method-assign]
    for step in (0, 1, 10, 1_000_000):
        learner.batch(step)
    trained = set(seeds)
    assert len(trained) == len(seeds) == 4 * 24, "and each answer has its own"
    seeds.clear()
    learner.score()
    assert len(set(seeds)) == len(seeds) == 4 * len(learner.heldout)
    assert not trained & set(seeds) and min(seeds) > max(trained)


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        ("dpo", "beta", 0.7),
        ("dpo", "label_smoothing", 0.2),
        ("simpo", "gamma", 0.5),
        ("grpo", "kl", "k3"),
        ("grpo", "kl_coef", 0.7),
    ],
)
def test_a_number_of_the_recipe_reaches_the_loss(folder: Path, method: str, field: str, value: Any) -> None:
    losses = []
    for fields in ({}, {field: value}):
        settings = config(method=method, preferences=(TASKS,), **{"kl_coef": 1.0, **fields})
        train, heldout = split(settings)
        worker = Worker(0, 1, 0, "", "", None)
        kind = Pairs if method in PREFERENCE else Rollouts
        learner: Any = kind(settings, load_model(folder), load_model(folder), Tokenizer(folder), worker, train, heldout)
        batch = learner.batch(0)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in learner.model.parameters():  # away from the reference
                weight += 0.02 * torch.randn_like(weight)
            losses.append(float(learner.objective(learner.model, batch)[0]))
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tasks": ()}, "give tasks"),
        ({"method": "dpo"}, "give preferences"),
        ({"group_size": 5}, "multiple of group_size"),
        ({"kl": "k1"}, "k2"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_a_method_without_its_data_or_with_wrong_numbers_is_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**fields)
