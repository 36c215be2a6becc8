"""GPTQ: Frantar et al. 2022, arXiv 2210.17323. Column after column is rounded, and the rest makes up for its error.

    H = 2/n sum x x^T + damp mean(diag H) I          of the layer's inputs x, from calibration text
    U = upper Cholesky factor of H^-1                so that U_qq and U_q,: are what equation 2 needs of each step

    for q = 0 … I-1:      code_q = nearest(w_q)        err = (w_q - value_q) / U_qq        w_j -= err U_qj,  j > q

It minimises  ||W X - W' X||^2, which is  tr((W - W') H (W - W')^T) / 2  but for the damping; rows are independent.
The updates beyond a block of columns are done once, as a product (section 3.3, step 2). With `act_order` the columns
with the largest diagonal come first, on grids found before, so that groups stay where they are.
"""

import torch
from torch import Tensor, nn

from model.quantize.grid import Bits, Codes, collect, grid_of, grids

BLOCK = 128


class Hessian:
    """The sum over a layer's inputs, in float32: H (I, I) of all that `add` has seen."""

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        self.total_II = torch.zeros(inputs, inputs, device=device)
        self.count = 0

    def add(self, x: Tensor) -> None:
        """x: (…, I)."""
        x_NI = x.reshape(-1, x.shape[-1]).float()
        self.total_II.addmm_(x_NI.T, x_NI)
        self.count += len(x_NI)

    def sees_inputs(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook of a linear."""
        self.add(inputs[0])

    def mean(self) -> Tensor:
        """2/n sum x x^T; the identity where no input was seen, which makes GPTQ round to nearest."""
        if not self.count:
            return torch.eye(len(self.total_II), device=self.total_II.device)
        return self.total_II * (2 / self.count)


def gptq(
    weight_OI: Tensor, hessian_II: Tensor, bits: Bits, group_size: int, act_order: bool = False, damp: float = 0.01
) -> Codes:
    """A matrix's codes by GPTQ.

    Args:
        hessian_II: `Hessian.mean()` of the layer's inputs.
        group_size: inputs of a group (int4).
        act_order: take the columns by their diagonal, the largest first.
        damp: added to the diagonal, as a share of its mean; multiplied by ten until the factor exists.
    """
    W = weight_OI.float().clone()
    inputs = W.shape[1]
    width = group_size if bits == "int4" else inputs
    H = hessian_II.clone()
    dead = H.diagonal() == 0  # inputs that were always 0 don't count; on their own they are rounded to nearest
    H.diagonal()[dead] = 1
    fixed = grids(W, bits, group_size) if act_order or bits == "int8" else None
    order = H.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(inputs, device=W.device)
    U = _factor(H[order][:, order], damp)
    W = W[:, order]
    code_OI, found = torch.empty_like(W), list(fixed or ())
    places = order.tolist()
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        error_OB = torch.empty(len(W), stop - start, device=W.device)
        for q in range(start, stop):
            if fixed is None and q % width == 0:
                # A group's grid is found when its turn comes, on weights that have made up for all errors before it.
                ahead = W[:, q : q + width].clone()
                if q + width > stop:
                    ahead[:, stop - q :] -= error_OB[:, : q - start] @ U[start:q, stop : q + width]
                found.append(grid_of(ahead, bits))
            grid = found[places[q] // width]
            code = grid.encode(W[:, q : q + 1])
            error = (W[:, q : q + 1] - grid.decode(code)) / U[q, q]
            code_OI[:, q : q + 1], error_OB[:, q - start : q - start + 1] = code, error
            W[:, q:stop] -= error * U[q, q:stop]
        W[:, stop:] -= error_OB @ U[start:stop, stop:]
    return collect(code_OI[:, order.argsort()], found, bits)


def _factor(H: Tensor, damp: float) -> Tensor:
    mean = H.diagonal().mean()
    while True:
        damped = H + torch.eye(len(H), device=H.device) * (damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return upper
        damp *= 10
        if damp > 1e6:
            raise ValueError("GPTQ's Hessian has values that aren't finite: does the model give NaN on this text?")


def objective(weight_OI: Tensor, codes: Codes, hessian_II: Tensor) -> float:
    """The mean squared error of the layer's outputs, tr(D H D^T) / 2 with D = W - W', which GPTQ minimises."""
    D = weight_OI.float() - codes.decode()
    return float(((D @ hessian_II) * D).sum() / 2)
