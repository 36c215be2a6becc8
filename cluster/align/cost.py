"""What RLHF would cost: what rollout.py and preferences.py run.

Every answer is sampled to its last token, passes through the policy and the reference, and then through the policy
forward and backward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.align.config import PREFERENCE
from cluster.cost import SAMPLING, Cost, Machine
from cluster.train.cost import memory_of, model_of

if TYPE_CHECKING:
    from cluster.align.config import RlhfConfig
    from cluster.stage import Step

BYTES_PER_TOKEN, MARKS = 3.0, 6  # of a conversation's text, estimated before there is a tokenizer; chat marks around it
SAMPLED_ROWS = 256  # that the rollout decodes at once
LOOKED_AT = 64  # tasks or pairs whose length is looked at


def rlhf_cost(step: Step, machine: Machine) -> Cost:
    """Sampling, the reference's pass and the policy's update.

    Lengths are estimated: a prompt's from its text, an answer's as max_new_tokens, the most it can be, or for pairs
    from their text.
    """
    from model.count import flops_per_token, parameters
    from model.memory import state_bytes

    config, rlhf = model_of(step), step.config
    pairs, train = rlhf.method in PREFERENCE, rlhf.train
    prompt, answer = lengths(rlhf)
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
        works.append(machine.work("reference", (referred + scored) * length, (referred + scored) * once))
    else:
        sampled = learned + scored
        fed = answer - 1  # the last token is drawn, and goes in no more
        flops = forward(sampled, prompt, (prompt + 1) / 2, 1) + forward(sampled, fed, prompt + answer / 2, fed)
        works.append(machine.work("sampling", sampled * length, flops, SAMPLING))
        works.append(machine.work("old policy", learned * length, learned * once))
        if rlhf.kl_coef:
            works.append(machine.work("reference", learned * length, learned * once))
    works.append(machine.work("update", learned * length, 3 * learned * once))
    needed = memory_of(config, train, length, machine)
    state = 0 if pairs else state_bytes(config, min(SAMPLED_ROWS, train.batch_size), length)
    held = needed.total - needed.activations + 4 * parameters(config).total  # the reference's weights beside them
    return Cost(step.name, tuple(works), held + max(needed.activations, state), train.activation_checkpointing)


def lengths(rlhf: RlhfConfig) -> tuple[int, int]:
    """(a prompt's tokens, an answer's tokens), the mean over the first tasks or pairs."""
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
