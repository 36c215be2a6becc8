"""What an engine remembers and how much that is: the memory of states, and prefixes that requests share.

Rows have slots, all as long as the longest needs: a decode step reads them as they lie. Pages of a few tokens would
waste less of the memory, but are gathered before they are read: five times as long on a CPU (docs/lab.md).
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from model.decoder import Decoder
from model.state import State

BLOCK = 16  # tokens; shorter prefixes aren't worth a forward pass of their own
KNOWN = 1 << 16  # beginnings of prompts whose number of requests is remembered


class Memory:
    """Bytes of states, by measuring empty ones that have no data. limit: None for as many as it takes."""

    def __init__(self, model: Decoder, limit: int | None, kv_dtype: torch.dtype | None) -> None:
        self.model, self.limit = model, limit
        self._options: dict[str, Any] = {} if kv_dtype is None else {"kv_dtype": kv_dtype}
        self._of_row: dict[int, int] = {}

    def new_state(self, rows: int, tokens: int) -> State:
        return self.model.new_state(rows, tokens, **self._options)

    def cost(self, rows: int, tokens: int) -> int:
        """Of so many rows with room for so many tokens each; 0 without a limit."""
        if self.limit is None:
            return 0
        if tokens not in self._of_row:
            self._of_row[tokens] = self.model.new_state(1, tokens, "meta", **self._options).nbytes
        return rows * self._of_row[tokens]

    def holds(self, size: int) -> bool:
        return self.limit is None or size <= self.limit


class Prefixes:
    """States at places where prompts part ways, for the requests that begin alike.

        system prompt ──┬── question one        kept: the state after the system prompt (2 requests have gone through),
                        └── question two ×8           and after question two but its last token (8 have)

    A beginning is known by the hash of its tokens, at every `BLOCK` of them and before the last one, whose hidden state
    the next token is drawn from. A state is one row's, of any mixers. Those used longest ago are dropped first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.nbytes = 0
        self._states: OrderedDict[bytes, State] = OrderedDict()
        self._requests: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def beginnings(self, prompt: Sequence[int]) -> dict[int, bytes]:
        """{length: hash} of what might be shared of a prompt, whose request is counted."""
        digest, ends = hashlib.blake2b(digest_size=16), [*range(BLOCK, len(prompt) - 1, BLOCK), len(prompt) - 1]
        found: dict[int, bytes] = {}
        for begin, end in zip([0, *ends], ends, strict=False):
            digest.update(array("q", prompt[begin:end]).tobytes())
            if end >= BLOCK:
                found[end] = digest.digest()
        for key in found.values():
            self._requests[key] = self._requests.pop(key, 0) + 1
            if len(self._requests) > KNOWN:
                self._requests.popitem(last=False)
        return found

    def worth_keeping(self, beginnings: dict[int, bytes]) -> list[int]:
        """The lengths, rising, after which fewer requests go on together."""
        lengths = sorted(beginnings)
        counts = [self._requests.get(beginnings[n], 0) for n in lengths]
        after = [*counts, 0][1:]
        return [n for n, count, later in zip(lengths, counts, after, strict=True) if count > max(1, later)]

    def longest(self, beginnings: dict[int, bytes]) -> tuple[int, State | None]:
        """The longest beginning that is kept, and its state, which isn't to be changed; (0, None) for none."""
        for length in sorted(beginnings, reverse=True):
            state = self._states.get(beginnings[length])
            if state is not None:
                self._states.move_to_end(beginnings[length])
                return length, state
        return 0, None

    def keep(self, key: bytes, state: State) -> None:
        if key not in self._states:
            self._states[key] = state
            self.nbytes += state.nbytes
        while len(self) > self.most:
            self.drop_oldest()

    def drop_oldest(self) -> None:
        _, state = self._states.popitem(last=False)
        self.nbytes -= state.nbytes

    def clear(self) -> None:
        self._states.clear()
        self.nbytes = 0
