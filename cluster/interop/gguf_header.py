"""A GGUF file's header, gone through before anything is made of it: what it counts must be there.

    magic, version, tensors, keys │ key, type, value … │ name, sides, type, offset …      little or big endian

Counts and lengths are 64 bits of whoever wrote them, and a reader that believes them fills the memory from a file of
a hundred bytes. Each is held against the bytes that are left; so all of this is linear in the file.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # a value's type: its bytes
STRING, ARRAY = 8, 9
SIDES = 8  # that a tensor has at most; GGML's own limit is 4
KEY, TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes of the shortest of each: no name, a value of a byte; no sides
VERSIONS = (2, 3)
MOST_VALUES = 1 << 22  # in all arrays: 260,000 tokens need 2 million, and the library takes half a kilobyte for each


def check_header(path: Path) -> None:
    """Raises ValueError, with what is wrong, for a header that is no GGUF's or that counts more than there is."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _Header(data).check()


class _Header:
    def __init__(self, data: mmap.mmap):
        self.data, self.at, self.order, self.values = data, 0, "<", 0

    def check(self) -> None:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin as one")
        version = self._number(4)
        if version & 0xFFFF == 0:  # written on a machine of the other byte order
            self.order, self.at = ">", 4
            version = self._number(4)
        if version not in VERSIONS:
            raise ValueError(f"version {version}; read are {' and '.join(map(str, VERSIONS))}")
        tensors, keys = self._number(8), self._number(8)
        self._fits(tensors, TENSOR, "tensors")
        self._fits(keys, KEY, "keys")
        for _ in range(keys):
            self._text()
            self._value(self._number(4))
        for _ in range(tensors):
            self._text()
            sides = self._number(4)
            if sides > SIDES:
                raise ValueError(f"a tensor of {sides} sides")
            self._take(8 * sides + 4 + 8)

    def _value(self, kind: int) -> None:
        if kind in SCALARS:
            self._take(SCALARS[kind])
        elif kind == STRING:
            self._text()
        elif kind == ARRAY:
            of, count = self._number(4), self._number(8)
            self.values += count
            if self.values > MOST_VALUES:
                raise ValueError(f"its arrays have {self.values:,} values, and no model's over {MOST_VALUES:,}")
            if of in SCALARS:
                self._fits(count, SCALARS[of], "values of an array")
                self.at += count * SCALARS[of]
            elif of == STRING:
                self._fits(count, 8, "texts of an array")
                for _ in range(count):
                    self._text()
            else:
                raise ValueError(f"an array of values of the type {of}")
        else:
            raise ValueError(f"a value of the type {kind}")

    def _text(self) -> None:
        size = self._number(8)
        self._fits(size, 1, "bytes of a text")
        self.at += size

    def _number(self, size: int) -> int:
        return struct.unpack(f"{self.order}{'I' if size == 4 else 'Q'}", self._take(size))[0]

    def _take(self, size: int) -> bytes:
        self._fits(size, 1, "bytes more")
        self.at += size
        return self.data[self.at - size : self.at]

    def _fits(self, count: int, size: int, what: str) -> None:
        if count * size > len(self.data) - self.at:
            raise ValueError(f"it says {count:,} {what}, and is over before")
