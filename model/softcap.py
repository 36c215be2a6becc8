"""The soft-cap of logits, c tanh(z / c): Bello et al. 2016, arXiv 1611.09940; Gemma 2, arXiv 2408.00118, section 2.

It keeps them within (-c, c) and leaves small ones as they are. None for c: no cap.
"""

from torch import Tensor


def softcap(z: Tensor, c: float | None) -> Tensor:
    """A new tensor, or `z` itself where there is no cap; autograd follows."""
    return z if c is None else c * (z / c).tanh()


def softcap_(z: Tensor, c: float | None) -> Tensor:
    """In place, for a loss that knows its own gradient."""
    return z if c is None else z.div_(c).tanh_().mul_(c)


def slope(capped: Tensor, c: float) -> Tensor:
    """The cap's derivative where it gave `capped`: 1 - (capped / c)^2, a new tensor."""
    return (capped / c).square_().neg_().add_(1)
