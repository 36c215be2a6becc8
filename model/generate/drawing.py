"""The next tokens of rows that were asked for in different ways: those of one kind are drawn together.

    logits (B, V) ─▶ by kind of decoding ─▶ choose (sampling.py), with the kind's history ─▶ handles

A row's history, its request's end and its error are its own: what another row asks for changes nothing of it.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from model.decoder import Decoder
from model.errors import UserError
from model.generate.decoding import Decoding
from model.generate.history import History
from model.generate.request import Token
from model.generate.sampling import choose
from model.generate.scheduler import Row


class Drawing:
    """For each kind of decoding, and whether its rows are watched, its rows and their history, in one order."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self._kinds: dict[tuple[Decoding, bool], tuple[list[Row], History]] = {}

    def begin(self, rows: Iterable[Row]) -> None:
        """Rows whose prompts have been absorbed."""
        device, vocab_size = self.model.embedding.weight.device, self.model.config.vocab_size
        for row in rows:
            asked = row.handle.request
            seed = asked.decoding.seed if asked.seed is None else asked.seed
            new = History.begin([row.prompt], [seed], row.kind, vocab_size, device, asked.watch)
            key = row.kind, asked.watch is not None
            if key in self._kinds:
                members, history = self._kinds[key]
                self._kinds[key] = [*members, row], history.join(new)
            else:
                self._kinds[key] = [row], new

    def draw(self, logits_BV: Tensor, rows: Sequence[Row]) -> list[Row]:
        """Each row's next token goes to its handle; returns the rows that end with it, which are forgotten.

        rows: those of the logits, in their order; all that are at work of a kind, or only some.
        """
        at = {id(row): i for i, row in enumerate(rows)}
        ended: list[Row] = []
        for key, (members, history) in list(self._kinds.items()):
            mine = [i for i, row in enumerate(members) if id(row) in at]
            if not mine:
                continue
            some = len(mine) < len(members)
            chosen = [members[i] for i in mine]
            places = [at[id(row)] for row in chosen]
            logits = logits_BV if places == list(range(len(rows))) else logits_BV[_index(places, logits_BV)]
            own = history.select(_index(mine, logits_BV)) if some else history
            stopped = self._draw_alike(logits, chosen, own)
            if some:
                rest = [i for i in range(len(members)) if i not in set(mine)]
                history = history.select(_index(rest, logits_BV)).join(own)
                members = [*(members[i] for i in rest), *chosen]
            self._kinds[key] = members, history
            ended += stopped
        self.forget(ended)
        return ended

    def forget(self, rows: Iterable[Row]) -> None:
        gone = {id(row) for row in rows}
        if not gone:
            return
        for key, (members, history) in list(self._kinds.items()):
            left = [i for i, row in enumerate(members) if id(row) not in gone]
            if not left:
                del self._kinds[key]
            elif len(left) < len(members):
                rows_B = torch.tensor(left, device=history.seeds_B.device)
                self._kinds[key] = [members[i] for i in left], history.select(rows_B)

    def _draw_alike(self, logits_BV: Tensor, rows: list[Row], history: History) -> list[Row]:
        """Of rows of one kind; a row without a distribution ends with its error."""
        wrong: dict[int, UserError] = {}
        try:
            drawn = choose(logits_BV, rows[0].kind, history)
        except UserError as error:
            for i in range(len(rows)):
                one = torch.tensor([i], device=logits_BV.device)
                try:
                    choose(logits_BV[one], rows[0].kind, history.select(one))
                except UserError as its:
                    wrong[i] = its
            if len(wrong) in (0, len(rows)):
                wrong = dict.fromkeys(range(len(rows)), error)
                return self._failed(rows, wrong)
            good = torch.tensor([i for i in range(len(rows)) if i not in wrong], device=logits_BV.device)
            filled = logits_BV.clone()
            filled[list(wrong)] = logits_BV[good[:1]]
            drawn = choose(filled, rows[0].kind, history)
        watched_B = history.take(drawn.token_B).tolist()
        top = drawn.top or [[] for _ in rows]
        tokens = map(Token, drawn.token_B.tolist(), drawn.logprob_B.tolist(), drawn.sampled_B.tolist(), top)
        ended = self._failed(rows, wrong)
        limit, stops = self.model.config.max_seq_len, set(rows[0].kind.stop_ids)
        for i, (row, token, watched) in enumerate(zip(rows, tokens, watched_B, strict=True)):
            if i in wrong:
                continue
            row.handle.add(token)
            made, most = len(row.handle.completion.tokens), row.handle.request.decoding.max_new_tokens
            if watched or token.id in stops:
                row.handle.completion.finish = "stop"
            elif made < most and len(row.prompt) + made <= limit:
                continue
            row.handle.end()
            ended.append(row)
        return ended

    @staticmethod
    def _failed(rows: list[Row], wrong: dict[int, UserError]) -> list[Row]:
        for i, error in wrong.items():
            rows[i].handle.end(error)
        return [rows[i] for i in wrong]


def _index(rows: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.long, device=like.device)
