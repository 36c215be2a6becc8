"""Beam search: the n likeliest beginnings are kept at each step (Graves 2012, arXiv 1211.3711).

    n beginnings ─▶ all their continuations ─▶ the 2n likeliest ─┬─ ends with a stop, among the first n ─▶ finished
                                                                 └─ the first n others                  ─▶ next step

    score of a finished one = its log-probability / its tokens ^ length_penalty

It ends once no beginning can still beat the worst of n finished ones, however it goes on. Nothing is drawn: temperature
and truncation don't count; biases, penalties, a minimum length and watchers do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.decoder import Decoder
from model.generate.batches import check_prompts
from model.generate.best_of import ranked
from model.generate.decoding import Decoding
from model.generate.engine import Completion, Token
from model.generate.history import History
from model.generate.method import Method, Prompts, Tools, only_causal
from model.generate.option import option
from model.generate.sampling import check_drawn, likeliest, shaped
from model.state import State


@dataclass(frozen=True)
class Beam(Method):
    n: int = option(4, "Beginnings that are kept.", ge=1)
    length_penalty: float = option(1.0, "Above 0 favours long answers, below 0 short ones.")

    @torch.no_grad()
    def generate(
        self, model: Decoder, prompts: Prompts, decoding: Decoding, seeds: Sequence[int], tools: Tools
    ) -> list[Completion]:
        """The best of each prompt's finished answers; the others are in its `others`."""
        only_causal(model, "beam")
        check_prompts(prompts, model.config.max_seq_len, 0, model.config.vocab_size)
        return [self._search(model, prompt, decoding, tools) for prompt in prompts]

    def _search(self, model: Decoder, prompt: Sequence[int], decoding: Decoding, tools: Tools) -> Completion:
        device, limit, stops = model.embedding.weight.device, model.config.max_seq_len, {*decoding.stop_ids}
        most = min(decoding.max_new_tokens, limit - len(prompt) + 1)
        hidden, state = model(
            torch.tensor([list(prompt)], device=device), state=model.new_state(1, min(len(prompt) + most, limit))
        )
        history = History.begin([prompt], [0], decoding, model.config.vocab_size, device, tools.watch)
        running, totals_B = [Completion()], torch.zeros(1, device=device)
        finished: list[tuple[float, Completion]] = []
        for length in range(1, most + 1):
            logits_BV = model.logits(hidden[:, -1])
            step = _Step(logits_BV, shaped(logits_BV, decoding, history).log_softmax(-1), decoding)
            wanted = self.n * max(2, 1 + len(stops))
            kept: list[tuple[int, int, float]] = []  # (beginning, token, log-probability of the whole)
            for rank, (row, token, total) in enumerate(step.best(totals_B, wanted)):
                if token in stops or length == most:
                    if rank < self.n:
                        done = step.extended(running[row], row, token, "stop" if token in stops else "length")
                        finished.append((total / length**self.length_penalty, done))
                elif len(kept) < self.n:
                    kept.append((row, token, total))
            if not kept:
                break
            rows, tokens = (torch.tensor(column, device=device) for column in list(zip(*kept, strict=True))[:2])
            running = [step.extended(running[row], row, token) for row, token, _ in kept]
            totals_B, history, state = (
                torch.tensor([x for *_, x in kept], device=device),
                history.select(rows),
                _of(state, rows),
            )
            ended_B = history.take(tokens)
            for row in ended_B.nonzero().squeeze(1).tolist():
                running[row].finish = "stop"
                finished.append((float(totals_B[row]) / length**self.length_penalty, running[row]))
            finished = sorted(finished, key=lambda one: -one[0])[: self.n]
            on = (~ended_B).nonzero().squeeze(1)
            if not len(on) or self._decided(finished, float(totals_B[on].max()), length, most):
                break
            if len(on) < len(running):
                running = [running[row] for row in on.tolist()]
                totals_B, history, state, tokens = totals_B[on], history.select(on), _of(state, on), tokens[on]
            hidden, state = model(tokens[:, None], state=state)
        finished = sorted(finished, key=lambda one: -one[0])[: self.n]
        return ranked([one for _, one in finished], [score for score, _ in finished])

    def _decided(self, finished: list[tuple[float, Completion]], best: float, length: int, most: int) -> bool:
        """Whether the best beginning, whose log-probability only falls, can't beat the worst of n finished answers."""
        longest = most if self.length_penalty > 0 else length
        return len(finished) == self.n and best / longest**self.length_penalty <= finished[-1][0]


@dataclass(frozen=True)
class _Step:
    """Log-probabilities of the next token, as the model has them and as they are searched."""

    logits_BV: Tensor
    shaped_BV: Tensor
    decoding: Decoding

    def best(self, totals_B: Tensor, count: int) -> list[tuple[int, int, float]]:
        """(beginning, token, log-probability of both) of the likeliest continuations, the best first."""
        scores_BV = totals_B[:, None] + self.shaped_BV
        found = scores_BV.flatten().topk(min(count, scores_BV.numel()))
        check_drawn(self.logits_BV.log_softmax(-1).amax(-1), found.values[:1].expand(len(scores_BV)), self.decoding)
        V = scores_BV.shape[1]
        both = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return [(at // V, at % V, total) for at, total in both if total > float("-inf")]

    def extended(
        self, beginning: Completion, row: int, token: int, finish: Literal["stop", "length"] = "length"
    ) -> Completion:
        """A copy of a beginning with one more token."""
        own_V = self.logits_BV[row].log_softmax(-1)
        copy = Completion(finish=finish)
        for earlier in beginning:
            copy.add(earlier)
        top = [*likeliest(own_V[None], self.decoding.top_logprobs), []][0]
        copy.add(Token(token, float(own_V[token]), float(self.shaped_BV[row, token]), top))
        return copy


def _of(state: State | None, rows: Tensor) -> State:
    assert state is not None
    return state.select(rows)
