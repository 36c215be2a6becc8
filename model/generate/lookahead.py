"""Lookahead decoding (Fu et al. 2024, arXiv 2402.02057): greedy's own text in fewer steps, without a draft model.

    x b0 c0              window: Jacobi's iteration, in which all of what follows is guessed at once, and guessed anew
    x a1 b1 c1             by each step. a, b, c: levels, made one step after another; each row's next token is its
    x a1 a2 b2 c2          place's next level, and completes a run of the pool: of `ngram` tokens, from x or aj on
    x g g g              pool: runs that began with x, seen in the window or in the text; those that say what greedy
    x h h h                says, token for token, become text

A step is one forward pass of all these rows, each a copy of the text's state. The paper puts them into one row under a
mask that is a tree; a mask is attention's alone, whereas a scan, a convolution or a ring of keys has one past. Rows fit
every mixer, and are set back by its state's contract: the copy of the state is what they cost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from model.decoder import Decoder
from model.generate.decoding import Decoding
from model.generate.engine import Token
from model.generate.history import History
from model.generate.method import Tools
from model.generate.option import option
from model.generate.rounds import InRounds, Text, absorb, index, prefilled
from model.generate.sampling import choose


@dataclass(frozen=True)
class Lookahead(InRounds):
    name: ClassVar[str] = "lookahead"
    greedy_only: ClassVar[bool] = True
    at_once: ClassVar[int] = 8
    window: int = option(5, "Places after the text that are guessed at once.", ge=1)
    ngram: int = option(4, "Tokens of a run in the pool: its first one, and what may follow it.", ge=2)
    guesses: int = option(5, "Runs of the pool that are checked at a step, at most.", ge=1)

    def rounds(self, model: Decoder, texts: list[Text], decoding: Decoding, tools: Tools) -> Iterator[None]:
        device, vocab_size, limit = model.embedding.weight.device, model.config.vocab_size, model.config.max_seq_len
        ahead = {
            id(text): _Ahead(
                self, text, History.begin([text.ids], [text.seed], decoding, vocab_size, device, tools.watch)
            )
            for text in texts
        }
        state = prefilled(model, texts)
        state.reserve(len(texts), min(limit, state.capacity + self.window + self.ngram))
        while texts:
            of, rows = [], []
            for i, text in enumerate(texts):
                one = ahead[id(text)]
                for part in [*one.checked(text), *one.windowed(text, limit)]:
                    of.append(i)
                    rows.append(part)
            copies = state.select(index(of, state.lengths_B))
            copies.mark()
            hidden, copies = absorb(model, copies, rows)
            lengths, winners, start = [len(texts[i].ids) - 1 for i in of], [], 0
            for text in texts:
                one = ahead[id(text)]
                end = start + len(one.runs)
                logits_GTV = model.logits(hidden[start:end, : self.ngram])
                winner = start + one.judge(text, logits_GTV, decoding)
                lengths[winner] = len(text.ids) - 1
                winners.append(winner)
                start, after = end + len(one.places), index(map(len, rows[end : end + len(one.places)]), hidden) - 1
                if one.places:
                    one.moved(model.logits(hidden[index(range(end, start), hidden), after]).argmax(-1).tolist())
            copies.rewind(index(lengths, hidden))
            going = [i for i, text in enumerate(texts) if not text.done]
            state = copies.select(index([winners[i] for i in going], hidden))
            texts = [texts[i] for i in going]
            yield


class _Ahead:
    """What one text has ahead of it: its window's levels, its pool, and the rows of the step at hand.

    levels: `ngram` - 1 of them, of `window` tokens each; level i's token number j is a guess of what stands i + j
    places after the text's last token, which the very first one is itself.
    pool: a token to the runs that may follow it, the latest last.
    """

    def __init__(self, options: Lookahead, text: Text, history: History) -> None:
        self.options, self.history = options, history
        self.pool: dict[int, dict[tuple[int, ...], None]] = {}
        W, N, ids = options.window, options.ngram, text.ids
        self.levels = [[ids[(i * W + j) % len(ids)] for j in range(W)] for i in range(N - 1)]
        self.seen = 0
        self.runs: list[tuple[int, ...]] = []
        self.places: list[int] = []

    def checked(self, text: Text) -> list[list[int]]:
        """The pool's runs after the last token; where it has none, that token alone."""
        last, N = text.ids[-1], self.options.ngram
        for i in range(self.seen, len(text.ids) - N + 1):
            self._keep(text.ids[i : i + N])
        self.seen = max(0, len(text.ids) - N + 1)
        self.levels[0][0] = last
        cut = {run[: text.left - 1]: None for run in reversed(self.pool.get(last, {}))}
        self.runs = list(cut) or [()]
        return [[last, *run] for run in self.runs]

    def windowed(self, text: Text, limit: int) -> list[list[int]]:
        """A row for each place of the window; none where the context ends before."""
        longest = len(text.ids) - 1 + self.options.window + self.options.ngram - 2
        self.places = [] if longest > limit or text.left == 1 else list(range(self.options.window))
        first, *more = self.levels
        return [[*first[: j + 1], *(level[j] for level in more)] for j in self.places]

    def moved(self, tokens: Sequence[int]) -> None:
        """A level more, which completes a run of each place, and one less."""
        for j, token in enumerate(tokens):
            self._keep([*(level[j] for level in self.levels), token])
        self.levels = [*self.levels[1:], list(tokens)]

    def _keep(self, run: Sequence[int]) -> None:
        runs = self.pool.setdefault(run[0], {})
        runs.pop(tuple(run[1:]), None)
        runs[tuple(run[1:])] = None
        if len(runs) > self.options.guesses:
            del runs[next(iter(runs))]

    def judge(self, text: Text, logits_GTV: Tensor, decoding: Decoding) -> int:
        """Greedy's tokens as far as a run says the same, and one more; returns which run went furthest."""
        alive, place, stops = list(range(len(self.runs))), 0, set(decoding.stop_ids)
        drafted = sum(map(len, self.runs))
        while True:
            drawn = choose(logits_GTV[alive[0], place][None], decoding, self.history)
            token = int(drawn.token_B)
            right = [n for n in alive if place < len(self.runs[n]) and self.runs[n][place] == token]
            watched = bool(self.history.take(drawn.token_B))
            top = drawn.top[0] if drawn.top else []
            figures = float(drawn.logprob_B), float(drawn.sampled_B), top, 0 if place else drafted, bool(right)
            text.add(Token(token, *figures), watched or token in stops)
            if text.done or not right:
                return alive[0]
            alive, place = right, place + 1
