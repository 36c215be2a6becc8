"""Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318).

    guesses of what follows, each drawn from some q ─▶ one step of the model over all of them: p at each place
    from the first on: guess x is accepted with probability min(1, p(x) / q(x))
                       the first that isn't ─▶ a token drawn from max(0, p - q), normalised; the rest is forgotten
                       all were             ─▶ one more token, drawn from p

Each token then has the model's own distribution p, whatever q is; p and q are those after temperature, truncation,
penalties and all else that the decoding says. Greedy's are points, so that its text is greedy's own.

    speculative   a smaller model of the same tokenizer guesses
    lookup        the text itself does: what followed its last tokens before

A text's guesses grow in number while all are accepted, and shrink while not: 2 more, 1 less, between 1 and k. What is
drawn depends on the seed, the token's number and the text's own guesses, never on what shares its batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from model.decoder import Decoder
from model.errors import UserError
from model.generate.decoding import Decoding
from model.generate.drafts import Drafter, DraftModel, Drafts, NGrams
from model.generate.engine import Token
from model.generate.history import History
from model.generate.method import Tools, of_one_tokenizer
from model.generate.option import option
from model.generate.rounds import InRounds, Text, absorb, index, prefilled
from model.generate.sampling import check_drawn, distribution, draw, likeliest, uniform


class Speculating(InRounds):
    k: int

    def drafter(self, model: Decoder, texts: Sequence[Text], decoding: Decoding, tools: Tools) -> Drafter:
        raise NotImplementedError

    def rounds(self, model: Decoder, texts: list[Text], decoding: Decoding, tools: Tools) -> Iterator[None]:
        drafter = self.drafter(model, texts, decoding, tools)
        prompts, seeds = [text.ids for text in texts], [text.seed for text in texts]
        device = model.embedding.weight.device
        history = History.begin(prompts, seeds, decoding, model.config.vocab_size, device, tools.watch)
        state, most = prefilled(model, texts), [self.k] * len(texts)
        while texts:
            counts = [min(k, text.left - 1) for k, text in zip(most, texts, strict=True)]
            drafts = drafter.propose(texts, counts, history)
            if any(drafts.tokens):
                state.mark()
            parts = [[text.ids[-1], *guesses] for text, guesses in zip(texts, drafts.tokens, strict=True)]
            hidden, state = absorb(model, state, parts)
            history, accepted = judge(model.logits(hidden), texts, drafts, decoding, history)
            if state.marked_B is not None:
                state.rewind(index([len(text.ids) - 1 for text in texts], hidden))
            drafter.settle(accepted)
            judged = zip(most, drafts.tokens, accepted, strict=True)
            most = [adapted(k, len(guesses), n, self.k) for k, guesses, n in judged]
            ended = [i for i, text in enumerate(texts) if text.done]
            if ended:
                order = state.drop(ended)
                drafter.drop(ended, order)
                texts, most = [texts[i] for i in order], [most[i] for i in order]
                history = history.select(index(order, hidden))
            yield


@dataclass(frozen=True)
class Speculative(Speculating):
    name: ClassVar[str] = "speculative"
    draft: str = option("", "A smaller model with the same tokenizer, which guesses: its name, or its folder.")
    k: int = option(4, "Tokens that are guessed for a step, at most.", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.draft:
            raise UserError(
                "draft = '' must be another model with the same tokenizer: speculative:draft=MODEL; "
                "`lookup` guesses without one"
            )

    @property
    def others(self) -> tuple[str, ...]:
        return (self.draft,)

    def drafter(self, model: Decoder, texts: Sequence[Text], decoding: Decoding, tools: Tools) -> Drafter:
        draft = of_one_tokenizer(model, tools, "speculative", "draft", self.draft)
        return DraftModel(draft, texts, decoding)


@dataclass(frozen=True)
class Lookup(Speculating):
    name: ClassVar[str] = "lookup"
    n: int = option(3, "The text's last tokens that are looked for in it, at most.", ge=1)
    k: int = option(4, "Tokens that are guessed for a step, at most.", ge=1)

    def drafter(self, model: Decoder, texts: Sequence[Text], decoding: Decoding, tools: Tools) -> Drafter:
        return NGrams(texts, self.n)


def verify(logp_BV: Tensor, logq_BV: Tensor, guess_B: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each row's guess, drawn from q, is accepted (B,); and what is drawn from if not: logs (B, V), any sum.

    guess_B: -1 for none, with a q of -inf everywhere: p is then drawn from. uniform_B: in [0, 1).
    """
    p_BV, q_BV = logp_BV.double().exp(), logq_BV.double().exp()
    p_B, q_B = (x.gather(1, guess_B.clamp(min=0)[:, None]).squeeze(1) for x in (p_BV, q_BV))
    accepted_B = (guess_B >= 0) & (uniform_B * q_B < p_B)
    rest_BV = (p_BV - q_BV).clamp(min=0)
    some_B1 = rest_BV.sum(-1, keepdim=True) > 0  # else p is q, and nothing but rounding refused the guess
    return accepted_B, torch.where(some_B1, rest_BV, p_BV).log()


def judge(
    logits_BTV: Tensor, texts: Sequence[Text], drafts: Drafts, decoding: Decoding, history: History
) -> tuple[History, list[int]]:
    """Each text gets its accepted guesses and one token more; returns its history after them, and how many they were.

    logits_BTV: after the text, and after each of its guesses.
    """
    rows, accepted, stops = list(range(len(texts))), [0] * len(texts), set(decoding.stop_ids)
    settled: list[int] = []
    histories: list[History] = []
    for place in range(logits_BTV.shape[1]):
        logits_BV = logits_BTV[index(rows, logits_BTV), place]
        dist_BV = distribution(logits_BV, decoding, history)
        guesses = [drafts.tokens[row][place] if place < len(drafts.tokens[row]) else -1 for row in rows]
        guess_B, logq_BV = index(guesses, dist_BV), drafts.logq(place, rows, dist_BV)
        good_B, rest_BV = verify(dist_BV, logq_BV, guess_B, uniform(history.seeds_B, history.drawn_B, 1))
        other_B = rest_BV.argmax(-1) if decoding.greedy else draw(rest_BV, history.seeds_B, history.drawn_B)
        token_B = torch.where(good_B, guess_B, other_B)
        own_BV = logits_BV.log_softmax(-1)
        logprob_B, sampled_B = (x.gather(1, token_B[:, None]).squeeze(1) for x in (own_BV, dist_BV))
        check_drawn(logprob_B, sampled_B, decoding)
        top = likeliest(own_BV, decoding.top_logprobs) or [[] for _ in rows]
        ended, good = history.take(token_B).tolist(), good_B.tolist()
        made = zip(token_B.tolist(), logprob_B.tolist(), sampled_B.tolist(), top, strict=True)
        going: list[int] = []
        for n, (row, values) in enumerate(zip(rows, made, strict=True)):
            drafted = 0 if place else len(drafts.tokens[row])
            token = Token(*values, drafted=drafted, accepted=good[n])
            texts[row].add(token, ended[n] or token.id in stops)
            accepted[row] += good[n]
            if good[n] and not texts[row].done:
                going.append(n)
        over = [n for n in range(len(rows)) if n not in set(going)]
        histories.append(history.select(index(over, dist_BV)))
        settled += [rows[n] for n in over]
        rows, history = [rows[n] for n in going], history.select(index(going, dist_BV))
        if not rows:
            break
    whole = reduce(History.join, histories)
    return whole.select(index(sorted(range(len(settled)), key=settled.__getitem__), logits_BTV)), accepted


def adapted(k: int, drafted: int, accepted: int, most: int) -> int:
    """Guesses at the next step, after so many were made and accepted at this one."""
    if not drafted:
        return k
    return min(most, k + 2) if accepted == drafted else max(1, k - 1)
