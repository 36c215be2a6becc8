"""Which waiting requests begin: in their order, as many as there are rows and memory for.

    waiting ──admit──▶ prefilling, together ──▶ running

A request that would compute a shared prefix which another one is about to compute waits for it, and others may go
before it; nothing goes before one that waits for memory.
"""

from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from model.errors import UserError
from model.generate.cache import Memory, Prefixes
from model.generate.decoding import Decoding
from model.generate.request import Handle


@dataclass(eq=False)
class Row:
    """A request on its way. done: tokens of its prompt that its state has absorbed; keeps: where prefixes end."""

    handle: Handle
    prompt: list[int]
    need: int
    kind: Decoding  # what is alike for rows that are drawn together
    beginnings: dict[int, bytes]
    done: int = 0
    last: Tensor | None = None  # the hidden state (D) of its prompt's last token
    keeps: list[int] = field(default_factory=list)


class Scheduler:
    """Plans the batch once all admitted rows are in it: its `geometry` in rows and tokens, and its bytes, `planned`.

    apart: there is memory for the rows being prefilled beside it, so that each may join when its prompt ends; else
    they wait for each other, and their state becomes the batch. prefilling: its bytes.
    """

    def __init__(self, memory: Memory, prefixes: Prefixes, max_batch: int) -> None:
        self.memory, self.prefixes, self.max_batch = memory, prefixes, max_batch
        self.waiting: deque[Row] = deque()
        self.geometry, self.planned = (0, 0), 0
        self.apart, self.prefilling = True, 0

    def check(self, need: int) -> None:
        """UserError for a request that the memory never holds, even alone."""
        size = self.memory.cost(1, need)
        if not self.memory.holds(size):
            raise UserError(
                f"a request of {need} tokens (its prompt and its answer) needs {size:,} bytes of memory, "
                f"but the engine has {self.memory.limit:,}: shorten it, or give the engine more"
            )

    def admit(self, running: list[Row], reserved: tuple[int, int]) -> list[Row]:
        """The rows that begin now, which leave the queue. reserved: the batch's rows and tokens as they are."""
        chosen: list[Row] = []
        passed: list[Row] = []
        computed: set[bytes] = set()
        while self.waiting and len(running) + len(chosen) < self.max_batch:
            row = self.waiting[0]
            row.done, _ = self.prefixes.longest(row.beginnings)
            row.keeps = [n for n in self.prefixes.worth_keeping(row.beginnings) if n > row.done]
            keys = [row.beginnings[n] for n in row.keeps]
            if not computed.isdisjoint(keys):
                passed.append(self.waiting.popleft())
                continue
            if not self._plan(running, [*chosen, row], reserved):
                break
            if keys and self.room_for(self.memory.cost(1, row.keeps[-1])):
                computed.update(keys)
            chosen.append(self.waiting.popleft())
        self.waiting.extendleft(reversed(passed))
        return chosen

    def room_for(self, size: int) -> bool:
        """Whether a prefix of so many bytes may be kept."""
        return self.memory.holds(self.planned + self.prefilling + self.prefixes.nbytes + size)

    def _plan(self, running: list[Row], new: list[Row], reserved: tuple[int, int]) -> bool:
        """Whether the memory holds these rows too, if need be without any prefix, or in a tighter batch."""
        cost, rows = self.memory.cost, len(running) + len(new)
        longest, longest_new = max(row.need for row in (*running, *new)), max(row.need for row in new)
        loose, tight = (max(rows, reserved[0]), max(longest, reserved[1])), (rows, longest)
        plans = [(loose, True), (tight, True)] if running else [(tight, True), (tight, False)]
        for geometry, apart in plans:
            planned, prefilling = cost(*geometry), cost(len(new), longest_new) if apart else 0
            while (geometry, apart) == plans[-1] and len(self.prefixes):
                if self.memory.holds(planned + prefilling + self.prefixes.nbytes):
                    break
                self.prefixes.drop_oldest()
            if self.memory.holds(planned + prefilling + self.prefixes.nbytes):
                self.geometry, self.planned, self.prefilling, self.apart = geometry, planned, prefilling, apart
                return True
        return False
