"""What a parameter is to the optimizer.

Matrix, or a stack of them (may be orthogonalised), router (a matrix that may not), embedding, head, or vector
(no decay).
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Role:
    """rows: sizes of the blocks of output rows that are matrices of their own (q, k, v in one weight).

    narrow: the number of its inputs stays the same when the model gets wider (a low rank); mup.py asks.
    """

    kind: Literal["matrix", "router", "embedding", "head", "vector"]
    rows: tuple[int, ...] | None = None
    narrow: bool = False
