"""Guesses of what follows each text of a batch: from a small model, or from the text itself.

    DraftModel   the draft model's own next tokens, drawn from its distribution under the same options
    NGrams       what followed the text's last n tokens where they stood before (Saxena 2023, prompt lookup)

A drafter follows its batch: `propose`, then `settle` once the guesses are judged, and `drop` as texts leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from model.decoder import Decoder
from model.generate.decoding import Decoding
from model.generate.history import History
from model.generate.rounds import Text, absorb, index
from model.generate.sampling import NEVER, check_drawn, distribution, draw

OF_DRAFTS = 0x5851F42D4C957F2D  # what a draft is drawn by shares no number with what judges it


@dataclass
class Drafts:
    """tokens: of each row, none or some, each drawn from logq_KBV[its place] (log-probabilities); none: as they are."""

    tokens: list[list[int]]
    logq_KBV: list[Tensor] = field(default_factory=list)

    def logq(self, place: int, rows: Sequence[int], like: Tensor) -> Tensor:
        """(rows, V) of that place: -inf everywhere for a row that has no guess there."""
        if self.logq_KBV:
            none = torch.full_like(like, NEVER)
            return self.logq_KBV[place][index(rows, like)] if place < len(self.logq_KBV) else none
        certain = torch.full_like(like, NEVER)
        for n, row in enumerate(rows):
            if place < len(self.tokens[row]):
                certain[n, self.tokens[row][place]] = 0.0
        return certain


class Drafter(Protocol):
    def propose(self, texts: Sequence[Text], counts: Sequence[int], history: History) -> Drafts:
        """At most so many guesses for each text."""
        ...

    def settle(self, accepted: Sequence[int]) -> None:
        """So many of each text's guesses, the first ones, have become its own."""
        ...

    def drop(self, rows: Sequence[int], order: Sequence[int]) -> None:
        """These texts leave; order: which of the old ones stands in each place then."""
        ...


class DraftModel:
    """A model with a state of its own, which has absorbed each text up to `done`."""

    def __init__(self, model: Decoder, texts: Sequence[Text], decoding: Decoding) -> None:
        self.model, self.decoding, self.limit = model, decoding, model.config.max_seq_len
        self.done, self.fed = [0] * len(texts), [0] * len(texts)
        longest = max(len(text.ids) + text.most for text in texts)
        self.state = model.new_state(len(texts), min(longest, self.limit))

    def propose(self, texts: Sequence[Text], counts: Sequence[int], history: History) -> Drafts:
        """A text that is longer than the draft model's context has no guesses."""
        counts = [min(count, self.limit - len(text.ids) + 1) for count, text in zip(counts, texts, strict=True)]
        drafts, rows = Drafts([[] for _ in texts]), [i for i, count in enumerate(counts) if count > 0]
        self.fed = [0] * len(texts)
        if not rows:
            return drafts
        behind = [text.ids[self.done[i] :] if counts[i] > 0 else [] for i, text in enumerate(texts)]
        logits_BV = self._logits(behind, rows)
        self.done = [done + len(part) for done, part in zip(self.done, behind, strict=True)]
        self.state.mark()
        history, stops = _forked(history, rows), set(self.decoding.stop_ids)
        while True:
            dist_BV = distribution(logits_BV, self.decoding, history)
            greedy = self.decoding.greedy
            token_B = dist_BV.argmax(-1) if greedy else draw(dist_BV, history.seeds_B, history.drawn_B)
            own, drawn = (x.gather(1, token_B[:, None]) for x in (logits_BV.log_softmax(-1), dist_BV))
            check_drawn(own, drawn, self.decoding)
            logq_BV = dist_BV.new_full((len(texts), dist_BV.shape[1]), NEVER)
            logq_BV[index(rows, dist_BV)] = dist_BV
            drafts.logq_KBV.append(logq_BV)
            ended, tokens = history.take(token_B).tolist(), token_B.tolist()
            for row, token in zip(rows, tokens, strict=True):
                drafts.tokens[row].append(token)
            stay = [
                n
                for n, row in enumerate(rows)
                if len(drafts.tokens[row]) < counts[row] and not ended[n] and tokens[n] not in stops
            ]
            if not stay:
                return drafts
            rows, history = [rows[n] for n in stay], history.select(index(stay, dist_BV))
            going = set(rows)
            last = [guesses[-1:] if i in going else [] for i, guesses in enumerate(drafts.tokens)]
            self.fed = [fed + len(part) for fed, part in zip(self.fed, last, strict=True)]
            logits_BV = self._logits(last, rows)

    def _logits(self, parts: list[list[int]], rows: list[int]) -> Tensor:
        """Of what follows these rows' parts."""
        hidden, self.state = absorb(self.model, self.state, parts)
        ends = index([len(parts[row]) - 1 for row in rows], hidden)
        return self.model.logits(hidden[index(rows, hidden), ends])

    def settle(self, accepted: Sequence[int]) -> None:
        if self.state.marked_B is None:
            return
        self.done = [done + min(n, fed) for done, n, fed in zip(self.done, accepted, self.fed, strict=True)]
        self.state.rewind(index(self.done, self.state.lengths_B))

    def drop(self, rows: Sequence[int], order: Sequence[int]) -> None:
        self.state.drop(rows)
        self.done = [self.done[row] for row in order]


class NGrams:
    """Of each text, where each run of at most n of its tokens last stood with something after it."""

    def __init__(self, texts: Sequence[Text], n: int) -> None:
        self.n = n
        self.after: list[dict[tuple[int, ...], int]] = [{} for _ in texts]
        self.seen = [1] * len(texts)

    def propose(self, texts: Sequence[Text], counts: Sequence[int], history: History) -> Drafts:
        """What comes after the latest place of the longest run; where the text ends before, its guesses go on."""
        found: list[list[int]] = []
        for i, (text, count) in enumerate(zip(texts, counts, strict=True)):
            ids, after = text.ids, self.after[i]
            for end in range(self.seen[i], len(ids)):
                after |= {tuple(ids[end - m : end]): end for m in range(1, min(self.n, end) + 1)}
            self.seen[i] = len(ids)
            runs = (tuple(ids[-m:]) for m in range(min(self.n, len(ids)), 0, -1))
            start = next((after[run] for run in runs if run in after), None)
            guesses: list[int] = []
            while start is not None and len(guesses) < count:
                at = start + len(guesses)
                guesses.append(ids[at] if at < len(ids) else guesses[at - len(ids)])
            found.append(guesses)
        return Drafts(found)

    def settle(self, accepted: Sequence[int]) -> None:
        """Texts are read where they stand."""

    def drop(self, rows: Sequence[int], order: Sequence[int]) -> None:
        self.after, self.seen = [self.after[row] for row in order], [self.seen[row] for row in order]


def _forked(history: History, rows: Sequence[int]) -> History:
    """These rows' own history for guesses, which changes nothing of theirs."""
    both = history.select(index([*rows, *rows], history.seeds_B))
    fork = both.select(index(range(len(rows), 2 * len(rows)), history.seeds_B))
    return replace(fork, seeds_B=fork.seeds_B ^ OF_DRAFTS)
