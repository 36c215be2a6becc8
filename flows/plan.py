"""`--plan`: what would run and why, what is there already, and what it would cost here. Starts and changes
nothing.

Sizes, FLOPs and memory are counted without allocating. The time of a training is its FLOPs over this machine's
measured matmul rate, times the share of it that training (or sampling) reaches, and the start of its workers; of any
other stage, what it took the last time. RLHF is what cluster/align/rollout.py and preferences.py run: every answer is
sampled to its last token, passes through the reference, and then through the policy forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from flows.closing import plain_table, put
from flows.show import count, duration, size

if TYPE_CHECKING:
    import torch

    from cluster.align.config import RlhfConfig
    from cluster.stage import Step
    from cluster.store.artifact import Artifacts, Manifest
    from flows.recipe import Recipe
    from model.config import ModelConfig
    from model.memory import Memory
    from model.train_config import TrainConfig

# Share of the matmul rate that a training step reaches: measured on 2 cores at widths 128 to 256 (0.40 to 0.58), and
# the usual 0.35 to 0.45 of well-tuned training on GPUs.
UTILISATION = {"cpu": 0.45, "cuda": 0.40}
# The same of sampling, one token a row at a time: measured 0.22 and 0.42 at widths 128 and 256 with 128 rows on a CPU;
# a guess on GPUs, where it is bound by memory.
SAMPLING = {"cpu": 0.25, "cuda": 0.05}
STARTING = 20.0  # seconds until a training's workers are there and have imported torch; measured on 2 cores
BYTES_PER_TOKEN, MARKS = 3.0, 6  # of a conversation's text, reckoned before there is a tokenizer; chat marks around it
SAMPLED_ROWS = 256  # that the rollout decodes at once
LOOKED_AT = 64  # tasks or pairs whose length is looked at
MAX_REASONS = 4


@dataclass
class Planned:
    """One step: whether it is there, and if not, why it runs and how long it took the last time."""

    name: str
    cached: bool
    reasons: list[str] = field(default_factory=list)
    last_seconds: float | None = None
    bytes: int = 0


@dataclass(frozen=True)
class Work:
    """Tokens that pass through the model in one way, and what that costs."""

    what: str
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """What one training costs."""

    name: str
    works: tuple[Work, ...]
    memory: int  # bytes on one worker
    checkpointing: str

    @property
    def tokens(self) -> int:
        return sum(work.tokens for work in self.works)

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.works)

    @property
    def seconds(self) -> float:
        return sum(work.seconds for work in self.works)


def look(steps: Sequence[Step], artifacts: Artifacts) -> list[Planned]:
    """Each step's state, by manifests and sizes; nothing is set aside, as a run would do."""
    from cluster.stage import explain, fingerprint, previous
    from cluster.store.folder import missing

    planned = []
    for step in steps:
        manifest = artifacts.manifest(step.stage.kind, fingerprint(step))
        before: Manifest | None = None
        if manifest is not None:
            problem = missing(artifacts.store, manifest.prefix, manifest.files)
            if problem is None and holds(step, manifest, artifacts):
                planned.append(Planned(step.name, True, [], manifest.wall_seconds, manifest.size))
                continue
            reasons = [f"damaged: {problem}" if problem else "its effect is no longer there"]
            before = manifest
        else:
            before = previous(step, artifacts)
            reasons = why(explain(step, before)) if before else ["never made in this store"]
        planned.append(Planned(step.name, False, reasons, before.wall_seconds if before else None))
    return planned


def why(reasons: Sequence[str]) -> list[str]:
    """The reasons for a person: what changed in the step itself first, inputs by name alone."""
    inputs = [r.removeprefix("input ").partition(":")[0] for r in reasons if r.startswith("input ")]
    own = [r for r in reasons if not r.startswith("input ")]
    return own + ([f"its {' and '.join(inputs)} would be new"] if inputs else [])


def holds(step: Step, manifest: Manifest, artifacts: Artifacts) -> bool:
    from cluster.store.artifact import Artifact

    check = step.stage.still_valid
    return check is None or check(Artifact(artifacts.store.url, manifest), step.config)


def trainings(
    recipe: Recipe, names: Sequence[str], rate: float, device: str, dtype: torch.dtype | None = None
) -> list[Training]:
    """Costs of the recipe's trainings among `names`, at `rate` FLOP/s of matrix products in `dtype` (None: fp32)."""
    from model.count import flops_per_token

    config = recipe.model.with_vocabulary(recipe.tokenizer.vocab_size)
    stages = {"pretrain": recipe.train}
    stages |= {"extend": recipe.extend.train} if recipe.extend else {}
    stages |= {"instruct": recipe.instruct.train} if recipe.instruct else {}
    found = []
    for name, train in stages.items():
        if name in names:
            tokens = train.steps * train.batch_size * train.seq_len
            flops = flops_per_token(config, train.seq_len) * tokens
            needed = _memory(config, train, train.seq_len, device, dtype)
            works = (_work("update", tokens, flops, rate, device),)
            found.append(Training(name, works, needed.total, train.activation_checkpointing))
    if recipe.rlhf and "rlhf" in names:
        found.append(_rlhf(config, recipe.rlhf, rate, device, dtype))
    return found


def _rlhf(config: ModelConfig, rlhf: RlhfConfig, rate: float, device: str, dtype: torch.dtype | None) -> Training:
    """Sampling, the reference's pass and the policy's update. Lengths are reckoned: a prompt's from its text, an
    answer's as max_new_tokens, the most it can be, or for pairs from their text."""
    from cluster.align.config import PREFERENCE
    from model.count import flops_per_token, parameters
    from model.memory import state_bytes

    pairs, train = rlhf.method in PREFERENCE, rlhf.train
    prompt, answer = _lengths(rlhf)
    length = min(prompt + answer, train.seq_len if pairs else config.max_seq_len)
    head = 2.0 * config.vocab_size * config.d_model

    def forward(rows: int, tokens: int, span: float, heads: int) -> float:
        """FLOPs of rows of `tokens` tokens that see `span` keys, `heads` of which need logits."""
        return rows * (tokens * (flops_per_token(config, 1, train=False, span=span) - head) + heads * head)

    learned = train.steps * train.batch_size * (2 if pairs else 1)
    scored = 2 * rlhf.heldout_items * (2 if pairs else 5)  # before and after; a greedy answer and four samples
    once = forward(1, length, (length + 1) / 2, answer)
    works = []
    if pairs:
        referred = learned if rlhf.method != "simpo" else 0
        works.append(_work("reference", (referred + scored) * length, (referred + scored) * once, rate, device))
    else:
        sampled = learned + scored
        fed = answer - 1  # the last token is drawn, and goes in no more
        flops = forward(sampled, prompt, (prompt + 1) / 2, 1) + forward(sampled, fed, prompt + answer / 2, fed)
        works.append(_work("sampling", sampled * length, flops, rate, device, SAMPLING))
        if rlhf.kl_coef:
            works.append(_work("reference", learned * length, learned * once, rate, device))
    works.append(_work("update", learned * length, 3 * learned * once, rate, device))
    needed = _memory(config, train, length, device, dtype)
    state = 0 if pairs else state_bytes(config, min(SAMPLED_ROWS, train.batch_size), length)
    held = needed.total - needed.activations + 4 * parameters(config).total  # the reference's weights beside them
    return Training("rlhf", tuple(works), held + max(needed.activations, state), train.activation_checkpointing)


def _work(
    what: str, tokens: int, flops: float, rate: float, device: str, reached: dict[str, float] = UTILISATION
) -> Work:
    return Work(what, tokens, flops, flops / (rate * reached[device]))


def _lengths(rlhf: RlhfConfig) -> tuple[int, int]:
    """(a prompt's tokens, an answer's tokens), the mean over the first tasks or pairs."""
    from cluster.align.config import PREFERENCE
    from cluster.data.examples import examples

    def tokens(text: str) -> float:
        return len(text.encode()) / BYTES_PER_TOKEN + MARKS

    pairs = rlhf.method in PREFERENCE
    items = (examples.read_preferences if pairs else examples.read_tasks)(rlhf.data, LOOKED_AT)[:LOOKED_AT]
    asked = [[m["content"] for m in item["messages"]] if "messages" in item else [item["prompt"]] for item in items]
    prompts = [sum(map(tokens, texts)) for texts in asked]
    answers = [(tokens(item["chosen"]) + tokens(item["rejected"])) / 2 for item in items] if pairs else []
    answer = round(sum(answers) / len(answers)) if answers else rlhf.max_new_tokens
    return round(sum(prompts) / len(prompts)), answer


def _memory(config: ModelConfig, train: TrainConfig, length: int, device: str, dtype: torch.dtype | None) -> Memory:
    import torch

    from model.memory import memory

    dtype = dtype or torch.float32
    return memory(
        config,
        train.rows_at_once(train.batch_size, length, device, dtype.itemsize),
        length,
        optimizer=train.optimizer,
        checkpointing=train.activation_checkpointing,
        dtype=dtype,
        device=device,
    )


def show(recipe: Recipe, steps: Sequence[Step], artifacts: Artifacts, console: Console) -> None:
    planned = look(steps, artifacts)
    to_run = [p.name for p in planned if not p.cached]
    costs = _costs(recipe, [s.name for s in steps], console)
    table = plain_table(f"{recipe.name}: {len(to_run)} of {len(planned)} stages would run")
    for name in ("stage", "", "time", "why"):
        table.add_column(name, justify="right" if name == "time" else "left", overflow="fold")
    total, unknown, starting = 0.0, False, STARTING if recipe.cluster.workers != 0 else 0.0
    for step in planned:
        if step.cached:
            table.add_row(step.name, "cached", "", size(step.bytes), style="dim")
            continue
        cost = costs.get(step.name)
        seconds = cost.seconds + starting if cost else step.last_seconds
        total, unknown = total + (seconds or 0.0), unknown or seconds is None
        about = "" if seconds is None else f"~{duration(seconds)}"
        more = len(step.reasons) - MAX_REASONS
        why = "; ".join(step.reasons[:MAX_REASONS]) + (f"; {more} more" if more > 0 else "")
        table.add_row(step.name, "runs", about, escape(why))
    put(table, console)
    if to_run:
        beside = ", and stages that never ran in this store" if unknown else ""
        console.print(f"About {duration(total)} of work{beside}, and up to 20 s to start.", highlight=False)
    else:
        console.print("Nothing would run.", highlight=False)


def _costs(recipe: Recipe, names: Sequence[str], console: Console) -> dict[str, Training]:
    import torch

    from model.count import flops_per_token, parameters
    from model.precision import choose, matmul_peak

    config = recipe.model.with_vocabulary(recipe.tokenizer.vocab_size)
    counts, length = parameters(config), recipe.train.seq_len
    active = f", {count(counts.active)} active for a token" if counts.active < counts.total else ""
    console.print(
        Text(
            f"Model: {count(counts.total)} parameters ({count(counts.embedding)} of them embeddings{active}), "
            f"{config.n_layers} layers of width {config.d_model}, vocabulary {config.vocab_size:,}, "
            f"context {config.max_seq_len:,}; FLOPs per token of rows of {length:,}: "
            f"{flops_per_token(config, length, train=False):.2e} forward, "
            f"{flops_per_token(config, length):.2e} in training"
        )
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, why = choose(recipe.train.precision, device)
    rate = matmul_peak(device, dtype)
    console.print(
        Text(
            f"Here: {rate / 1e9:,.0f} GFLOP/s of matrix products on {device} in {str(dtype).removeprefix('torch.')} "
            f"({why}); training is reckoned at {UTILISATION[device]:.0%} of that, sampling at {SAMPLING[device]:.0%}"
        )
    )
    costs = trainings(recipe, names, rate, device, dtype)
    if costs:
        table = plain_table("Training")
        for name in ("stage", "tokens", "FLOPs", "time here", "memory per worker", "checkpointing"):
            table.add_column(name, justify="left" if name in ("stage", "checkpointing") else "right")
        for cost in costs:
            table.add_row(cost.name, *_figures(cost), size(cost.memory), cost.checkpointing)
            for work in cost.works if len(cost.works) > 1 else ():
                table.add_row(f"  {work.what}", *_figures(work), "", "", style="dim")
        put(table, console)
    return {cost.name: cost for cost in costs}


def _figures(cost: Training | Work) -> tuple[str, str, str]:
    return count(cost.tokens), f"{cost.flops:.2e}", f"~{duration(cost.seconds)}"
