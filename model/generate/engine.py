"""An engine: many requests at once, one forward pass a token for all of them, and no place idle while one waits.

    add ─▶ waiting ─▶ prefill, some tokens a step ─▶ a row of the batch: a token a step ─▶ it ends, the next one begins

A server adds and cancels from any thread while another one calls `step`, or `run`; `generate` and `stream` do it all
in one. The rows' states, of whatever mixers, are joined and dropped by the state's contract (state.py).

A request's result depends on its prompt, its seed and the model only, not on its batch (up to rounding: products of
other shapes add up in another order).
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.decoder import Decoder
from model.generate.batches import check_prompts, in_batches
from model.generate.cache import Memory, Prefixes
from model.generate.decoding import GREEDY, Decoding
from model.generate.drawing import Drawing
from model.generate.history import Watch
from model.generate.request import Completion, Handle, Request, Token
from model.generate.schedule import CONSTANT
from model.generate.scheduler import Row, Scheduler
from model.segments import Segments
from model.state import State

__all__ = ["Completion", "Engine", "Handle", "Request", "Token", "generate", "stream"]


class Engine:
    """One model and the requests that it is at work on.

    Args:
        memory: bytes of all states at most, but for one layer's while the batch is laid out anew; None: no bound.
        max_batch: rows at once.
        prefill_chunk: tokens of prompts that are absorbed between two tokens of those that are running; None: all.
        kv_dtype: of keys and values; torch.int8 takes a quarter of float32's memory and rounds them.

    Attributes:
        model: its weights may be changed between two steps: kept prefixes are then dropped.
        prefilled: tokens of prompts absorbed so far, those that came with a shared prefix not counted.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        memory: int | None = None,
        max_batch: int = 64,
        prefill_chunk: int | None = 512,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        if not model.config.causal:
            raise ValueError("a model that isn't causal has no next token: use model.generate.diffusion")
        if max_batch < 1 or (prefill_chunk is not None and prefill_chunk < 1):
            raise ValueError(f"max_batch = {max_batch} and prefill_chunk = {prefill_chunk} must be at least 1")
        self.model, self.prefill_chunk, self.prefilled = model, prefill_chunk, 0
        self._memory = Memory(model, memory, kv_dtype)
        self._prefixes = Prefixes(max(64, max_batch))
        self._scheduler = Scheduler(self._memory, self._prefixes, max_batch)
        self._drawing = Drawing(model)
        self._inbox: deque[Row] = deque()
        self._prefilling: tuple[list[Row], State] | None = None
        self._running: list[Row] = []
        self._batch: State | None = None
        self._weights: list[tuple[int, int]] = []
        self._stepping, self._changed = threading.Lock(), threading.Condition()
        self._driver: int | None = None

    def __repr__(self) -> str:
        waiting = len(self._inbox) + len(self._scheduler.waiting)
        return f"<Engine: {len(self._running)} running, {waiting} waiting, {self.prefilled} tokens of prompts absorbed>"

    def add(self, request: Request) -> Handle:
        """Queue a request. ValueError for a prompt that can't be continued, and for more than the memory ever holds."""
        limit, decoding = self.model.config.max_seq_len, request.decoding
        prompt = [int(token) for token in request.prompt]
        check_prompts([prompt], limit, 0, self.model.config.vocab_size)
        need = min(len(prompt) + decoding.max_new_tokens - 1, limit)
        self._scheduler.check(need)
        # What is drawn together is of one kind: only a schedule of the temperature looks at the length.
        length = max(1, decoding.min_new_tokens) if decoding.temperature_schedule == CONSTANT else None
        kind = replace(decoding, seed=0, max_new_tokens=length or decoding.max_new_tokens)
        handle = Handle(request)
        with self._changed:
            self._inbox.append(Row(handle, prompt, need, kind, self._prefixes.beginnings(prompt)))
            self._changed.notify_all()
        return handle

    def cancel(self, handle: Handle) -> None:
        """It gets no more tokens; its row is free at the next step."""
        with self._changed:
            handle.cancelled = True
            self._changed.notify_all()

    def stream(self, handle: Handle) -> Iterator[Token]:
        """Its tokens as they are drawn, until its end; raises its error. Steps itself unless another thread runs it."""
        while True:
            while self._driver is None and handle.arrived.empty() and not handle.done.is_set():
                self.step()
            token = handle.arrived.get()
            if token is None:
                if handle.error is not None:
                    raise handle.error
                return
            yield token

    def run(self, stop: threading.Event) -> None:
        """Step whenever there is something to do, until `stop` is set; for a server's thread of its own."""
        self._driver = threading.get_ident()
        try:
            while not stop.is_set():
                if not self.step():
                    with self._changed:
                        self._changed.wait_for(lambda: bool(self._inbox) or stop.is_set(), timeout=0.1)
        finally:
            self._driver = None

    @property
    def nbytes(self) -> int:
        """Of all states: the batch's, those being prefilled, and kept prefixes."""
        held = [self._batch, self._prefilling and self._prefilling[1]]
        return self._prefixes.nbytes + sum(state.nbytes for state in held if state is not None)

    @torch.no_grad()  # not inference_mode: what it caches (RoPE tables) is used in training too
    def step(self) -> bool:
        """Absorb some of the prompts, then one token of every running row; False if there was nothing to do."""
        with self._stepping:
            try:
                self._take_in()
                self._leave([row for row in self._running if row.handle.cancelled])
                if self._prefilling is None:
                    self._admit()
                busy = self._prefilling is not None or bool(self._running)
                if self._prefilling is not None:
                    self._prefill(*self._prefilling)
                if self._running:
                    self._decode()
                return busy or bool(self._scheduler.waiting)
            except BaseException as fault:  # a bug, or memory that ran out: nobody may wait forever
                self._end_all(fault if isinstance(fault, Exception) else RuntimeError(f"the engine stopped: {fault!r}"))
                raise

    def _take_in(self) -> None:
        """What other threads left: new requests, and cancelled ones that haven't begun."""
        with self._changed:
            self._scheduler.waiting.extend(self._inbox)
            self._inbox.clear()
        waiting = self._scheduler.waiting
        for row in [row for row in waiting if row.handle.cancelled]:
            waiting.remove(row)
            row.handle.end()
        if len(self._prefixes):
            weights = [(p.data_ptr(), p._version) for p in self.model.parameters()]
            if weights != self._weights:
                self._prefixes.clear()
            self._weights = weights

    def _admit(self) -> None:
        """Some waiting rows begin, each with the longest prefix that is kept of it."""
        reserved = (0, 0) if self._batch is None else (self._batch.reserved, self._batch.capacity)
        rows = self._scheduler.admit(self._running, reserved)
        if not rows:
            return
        capacity = max(row.need for row in rows)
        if self._batch is not None:
            self._make_room(capacity)
        if not any(row.done for row in rows):
            self._prefilling = rows, self._memory.new_state(len(rows), capacity)
            return
        state = self._memory.new_state(0, capacity)
        state.reserve(len(rows), capacity)
        fresh = self._memory.new_state(1, 1)
        for row in rows:
            row.done, prefix = self._prefixes.longest(row.beginnings)
            state.append(fresh if prefix is None else prefix)
        self._prefilling = rows, state

    def _prefill(self, rows: list[Row], state: State) -> None:
        """Each row absorbs its share of the chunk, up to a place where its state is to be kept, or its prompt's end."""
        gone = [i for i, row in enumerate(rows) if row.handle.cancelled]
        if gone:
            for i in gone:
                rows[i].handle.end()
            rows = [rows[i] for i in state.drop(gone)]
            if not rows:
                self._prefilling = None
                return
        share = max(row.need for row in rows) if self.prefill_chunk is None else self.prefill_chunk // len(rows)
        counts = []
        for row in rows:
            row.keeps = [n for n in row.keeps if n > row.done]
            counts.append(min(max(1, share), (*row.keeps, len(row.prompt))[0] - row.done))
        device, T = state.lengths_B.device, max(counts)
        parts = [row.prompt[row.done : row.done + n] + [0] * (T - n) for row, n in zip(rows, counts, strict=True)]
        lengths_B = torch.tensor(counts, device=device)
        segments = None if min(counts) == T else Segments.padded(lengths_B, T)
        hidden, after = self.model(torch.tensor(parts, device=device), segments=segments, state=state)
        assert after is not None
        after.longest = max(row.done + n for row, n in zip(rows, counts, strict=True))  # not a sum of padded lengths
        self.prefilled += sum(counts)
        for i, (row, n) in enumerate(zip(rows, counts, strict=True)):
            row.done += n
            if row.done in row.keeps:
                self._keep(row, after, i)
            if n and row.done == len(row.prompt):
                row.last = hidden[i, n - 1].clone()
        ready = [i for i, row in enumerate(rows) if row.last is not None]
        if len(ready) == len(rows):
            self._prefilling = None
            self._begin(rows, after)
        elif ready and self._scheduler.apart:
            self._begin([rows[i] for i in ready], after, torch.tensor(ready, device=device))
            order = after.drop(ready)
            self._prefilling = [rows[i] for i in order], after
        else:
            self._prefilling = rows, after

    def _keep(self, row: Row, state: State, at: int) -> None:
        """The state of a row as it is becomes a prefix, if there is room for one more."""
        if self._scheduler.room_for(self._memory.cost(1, row.done)):
            alone = state.select(torch.tensor([at], device=state.lengths_B.device))
            kept = alone.moved_to(self._memory.new_state(0, row.done), 1)
            if not len(self._prefixes):
                self._weights = [(p.data_ptr(), p._version) for p in self.model.parameters()]
            self._prefixes.keep(row.beginnings[row.done], kept)

    def _begin(self, rows: list[Row], state: State, some: Tensor | None = None) -> None:
        """Prefilled rows get their first tokens and become part of the batch; some: theirs of the state's rows."""
        self._drawing.begin(rows)
        logits_BV = self.model.logits(torch.stack([row.last for row in rows if row.last is not None]))
        ended = {id(row) for row in self._drawing.draw(logits_BV, rows)}
        stay = [i for i, row in enumerate(rows) if id(row) not in ended]
        if not stay:
            return
        if some is not None:
            some = some[torch.tensor(stay, device=some.device)]
        elif len(stay) < len(rows):
            stay = state.drop([i for i, row in enumerate(rows) if id(row) in ended])
        if self._batch is None and some is None:
            self._batch = state
        else:
            self._make_room(state.capacity)
            assert self._batch is not None
            self._batch.append(state, some)
        self._running += [rows[i] for i in stay]

    def _make_room(self, capacity: int) -> None:
        """The batch as it is planned; it is laid out anew if it has room that others need."""
        planned, batch = self._scheduler.geometry, self._batch
        if batch is None:
            batch = self._memory.new_state(0, capacity)
        elif planned[0] < batch.reserved or planned[1] < batch.capacity:
            batch = batch.moved_to(self._memory.new_state(0, planned[1]), planned[0])
        batch.reserve(*planned)
        self._batch = batch

    def _decode(self) -> None:
        """The next token of every running row."""
        assert self._batch is not None
        tokens = [row.handle.completion.tokens[-1] for row in self._running]
        tokens_B1 = torch.tensor(tokens, device=self._batch.lengths_B.device)[:, None]
        hidden, self._batch = self.model(tokens_B1, state=self._batch)
        self._leave(self._drawing.draw(self.model.logits(hidden[:, -1]), self._running), ended=True)

    def _leave(self, rows: Sequence[Row], ended: bool = False) -> None:
        """These leave the batch; the last ones take their places."""
        if not rows:
            return
        assert self._batch is not None
        leaving = {id(row) for row in rows}
        if not ended:
            self._drawing.forget(rows)
            for row in rows:
                row.handle.end()
        if len(leaving) == len(self._running):  # their memory is free, and nothing of them is left in it
            self._running, self._batch = [], None
            return
        order = self._batch.drop([i for i, row in enumerate(self._running) if id(row) in leaving])
        self._running = [self._running[i] for i in order]

    def _end_all(self, fault: Exception) -> None:
        rows = [*self._scheduler.waiting, *self._running, *(self._prefilling[0] if self._prefilling else ())]
        self._scheduler.waiting.clear()
        self._running, self._batch, self._prefilling = [], None, None
        self._drawing.forget(rows)
        self._prefixes.clear()
        for row in rows:
            row.handle.end(fault)


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = GREEDY,
    seeds: Sequence[int] | None = None,
    batch_size: int = 128,
    watch: Watch | None = None,
) -> list[Completion]:
    """A completion for each prompt. seeds: one for each row; without, row i has the seed `decoding.seed` + i.

    watch: makes each row's watcher; a row that it ends has finish "stop". At most `batch_size` rows are in memory at
    once. ValueError for an empty prompt, or for one that leaves no room below the model's `max_seq_len`; a row that
    reaches it ends with finish "length".
    """
    engine = Engine(model, max_batch=batch_size, prefill_chunk=None)
    check_prompts(prompts, model.config.max_seq_len, 0, model.config.vocab_size)
    handles: dict[int, Handle] = {}
    for rows, chosen, batch_seeds in in_batches(prompts, decoding.seed if seeds is None else seeds, batch_size):
        for row, prompt, seed in zip(rows, chosen, batch_seeds, strict=True):
            handles[row] = engine.add(Request(prompt, decoding, seed, watch))
    while engine.step():
        for handle in handles.values():
            if handle.error is not None:
                raise handle.error
    return [handles[row].completion for row in range(len(prompts))]


def stream(
    model: Decoder, prompt: Sequence[int], decoding: Decoding = GREEDY, watch: Watch | None = None
) -> Iterator[Token]:
    """The tokens of one completion as they are drawn; a stop token that ends it comes last."""
    engine = Engine(model, max_batch=1, prefill_chunk=None)
    yield from engine.stream(engine.add(Request(prompt, decoding, watch=watch)))
