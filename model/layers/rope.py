"""Rotary position embedding: RoFormer, Su et al. 2021, arXiv 2104.09864, section 3.2.2 and equation 34.

    (x_2i + j x_2i+1)  ->  (x_2i + j x_2i+1) * exp(j m f_i),   f_i = theta^(-2i/D)      at position m, for each pair i

so that a query and a key meet with an angle that depends on their distance only. Neighbours are a pair, as in the
paper: the rotation is one complex product over memory as it lies, several times faster on a CPU than with the pairs
(i, i + D/2) of Hugging Face's weights, which `interop` gets by permuting rows.

A model reads contexts `factor` times longer than the L tokens it was trained on if its frequencies are stretched
(`frequencies`). D is the number of channels that are rotated, the first ones of a head.
"""

import math

import torch
from torch import Tensor, nn

from model.part_configs import RopeScaling


class Rope(nn.Module):
    """The table of a exp(j m f_i), grown on demand, and the rotation; a is YaRN's attention factor, else 1."""

    def __init__(self, dim: int, theta: float, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.frequency, self.factor = frequencies(dim, theta, scaling)
        self._tables: dict[torch.device, Tensor] = {}

    def table(self, length: int, device: torch.device) -> Tensor:
        """(at least `length`, D/2) complex64: each position's and pair's number, exact to float32."""
        held = self._tables.get(device)
        if held is None or held.shape[0] < length:
            size = 1 << (length - 1).bit_length()
            position = torch.arange(size, dtype=torch.float64, device="cpu")
            angle = position[:, None] * torch.tensor(self.frequency, dtype=torch.float64, device="cpu")
            held = torch.polar(torch.full_like(angle, self.factor), angle).to(torch.complex64).to(device)
            self._tables[device] = held
        return held

    def rotate(self, x_BTHD: Tensor, positions_BT: Tensor | None = None, longest: int = 0) -> Tensor:
        """Turn queries or keys (B, T, H, D). positions None means 0 ... T-1; else `longest` exceeds them all."""
        if positions_BT is None:
            turn = self.table(x_BTHD.shape[1], x_BTHD.device)[: x_BTHD.shape[1], None]
        else:
            turn = self.table(longest, x_BTHD.device)[positions_BT][:, :, None]
        rotated = x_BTHD if x_BTHD.shape[-1] == self.dim else x_BTHD[..., : self.dim]
        pairs = torch.view_as_complex(rotated.float().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * turn).flatten(-2).to(x_BTHD.dtype)
        return turned if rotated is x_BTHD else torch.cat((turned, x_BTHD[..., self.dim :]), -1)


def frequencies(dim: int, theta: float, scaling: RopeScaling | None) -> tuple[list[float], float]:
    """(f_i in radians per token for each of the dim / 2 pairs, the factor by which rotated channels grow).

    linear: f / factor, i.e. positions are interpolated (Chen et al. 2023, arXiv 2306.15595).
    ntk: theta * factor^(D / (D - 2)), so that the slowest pair is interpolated and the fastest is left alone
        (bloc97 2023; equation 16 of the YaRN paper).
    yarn: interpolates the pairs that turn less than beta_slow times in L tokens, none that turns more than beta_fast
        times, and sharpens attention (Peng et al. 2023, arXiv 2309.00071, sections 3.2 to 3.4). Queries and keys both
        grow by 0.1 ln(factor) + 1, so scores by its square, which is the paper's 1/t.
    llama3: as yarn, but the ramp is over turns in L tokens, and nothing is sharpened (Llama 3.1's rule).
    """
    if scaling is not None and scaling.kind == "ntk":
        theta = theta * scaling.factor ** (dim / max(1, dim - 2))  # a single pair has frequency 1 whatever theta is
    f = [theta ** (-i / dim) for i in range(0, dim, 2)]
    if scaling is None or scaling.kind == "ntk":
        return f, 1.0
    if scaling.kind == "linear":
        return [x / scaling.factor for x in f], 1.0
    L = scaling.original_max_len
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = [_clamp((L * x / math.tau - low) / (high - low)) for x in f]
        factor = 1.0
    else:
        # The pair, as a real number, that turns so often in L tokens.
        low, high = (
            dim * math.log(L / (math.tau * turns)) / (2 * math.log(theta))
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
        width = high - low if high != low else 0.001
        kept = [1 - _clamp((i - low) / width) for i in range(len(f))]
        factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
    return [x * (k + (1 - k) / scaling.factor) for x, k in zip(f, kept, strict=True)], factor


def _clamp(x: float) -> float:
    return min(1.0, max(0.0, x))
