"""Model sizes by one dial: `preset("125M")` is the shape of a model with about 125 million parameters.

A size counts parameters without embeddings (tokens, positions, an untied head): the count that scaling laws use
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1), and the one that doesn't depend on a vocabulary. With N of them:

    aspect ratio    width / layers grows with the size along `ASPECTS`, points taken from published tables
    width D         cube root of N * aspect / 12, for 12 D^2 a layer (13 with GQA), to the nearest round number
    layers          N / parameters of a layer
    head size       32 below width 256, 64 below 2048, then 128 (GPT-3: Brown et al. 2020, arXiv 2005.14165, table 2.1)
    key-value heads all below width 2048, then 8, or 4 where the heads are no multiple of 8 (Llama 3, arXiv 2407.21783)
    feed-forward    8/3 D, with GQA 7/2 D (Llama 3, table 3); another width where that misses the size by over 4%
    embeddings      tied below width 4096 (Llama 3.2)

Such a preset sets sizes only, so that it goes with any architecture (whose own parts then move the count).
`mini-gpt-SIZE` is GPT-2's shape instead (Radford et al. 2019: learned positions, LayerNorm, GELU, multi-head attention,
biases, tied embeddings), by the same rule with a feed-forward of 4 D and no GQA; `mini-gpt` alone is the small
baseline, to which every upgrade is one key.
"""

import math
import re
from bisect import bisect_left
from typing import Any

from model.errors import UserError, nearest

SIZES = ("1M", "3M", "10M", "30M", "60M", "125M", "350M", "760M", "1.3B", "3B", "7B", "13B", "34B", "70B")
BASELINE, BASELINE_SIZE = "mini-gpt", "3M"
NAMES = (*SIZES, BASELINE, *(f"{BASELINE}-{size}" for size in SIZES))
SMALLEST, LARGEST = 1e6, 70e9

# (parameters, width / layers): TinyStories-8M (Eldan & Li 2023, arXiv 2305.07759), GPT-3 125M and 760M, and the
# geometric mean of Llama 2's 7B, 13B and 70B (arXiv 2307.09288).
ASPECTS = ((10e6, 32.0), (125e6, 64.0), (760e6, 64.0), (7e9, 118.0))
STEPS = ((256, 32), (512, 64), (2048, 128), (4096, 512), (math.inf, 1024))  # widths below -> multiples of
GQA_WIDTH, UNTIED_WIDTH = 2048, 4096
TOLERANCE = 0.04

_UNITS = {"M": 1e6, "B": 1e9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([MB])", re.IGNORECASE)

_GPT2 = {
    "pattern": ("attention",),
    "ff_pattern": ("dense",),
    "position": "learned",
    "norm": "layernorm",
    "norm_position": "pre",
    "feed_forward": "gelu",
    "qk_norm": False,
    "bias": True,
    "qkv_bias": None,
    "out_bias": None,
    "ff_bias": None,
    "logit_softcap": None,
    "tie_embeddings": True,
}


def preset(name: str) -> dict[str, Any]:
    """The fields of `ModelConfig` that make this size.

    name: one of `NAMES`, or any other size from 1M to 70B, such as "90M" or "mini-gpt-2.5B".
    Raises ValueError with the nearest names for any other.
    """
    wanted = BASELINE_SIZE if name == BASELINE else name.removeprefix(f"{BASELINE}-")
    size = _SIZE.fullmatch(wanted)
    count = float(size[1]) * _UNITS[size[2].upper()] if size else 0.0
    if not SMALLEST <= count <= LARGEST:
        near = nearest(name, NAMES, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"any size from 1M to 70B, counted without embeddings, such as {', '.join(SIZES)}; "
            f"{BASELINE} or {BASELINE}-SIZE for GPT-2's shape.{hint}"
        )
    return solve(count, gpt2=wanted != name)


def solve(count: float, gpt2: bool = False) -> dict[str, Any]:
    """The shape with about `count` parameters without embeddings, by the rule above."""
    aspect = _aspect(count)
    width = _round((count * aspect / 12) ** (1 / 3))
    grouped = width >= GQA_WIDTH and not gpt2
    if grouped:
        width = max(GQA_WIDTH, _round((count * aspect / 13) ** (1 / 3)))
    head = 32 if width < 256 else 64 if width < 2048 else 128
    heads = width // head
    kv_heads = (8 if heads % 8 == 0 else 4) if grouped else heads
    matrices = 2 if gpt2 else 3  # of the feed-forward
    multiple = 32 if width < 512 else 64 if width < 2048 else 256
    d_ff = _up((4 if gpt2 else 7 / 2 if grouped else 8 / 3) * width, multiple)

    def rest(layers: int) -> int:
        """Parameters besides those that grow with d_ff: attention, norms, biases."""
        attention = 2 * width * width + 2 * width * head * kv_heads
        vectors = (4 + 4 + 1) * width if gpt2 else 2 * width  # two LayerNorms, biases; or two RMSNorms
        return layers * (attention + vectors) + width * (2 if gpt2 else 1)

    row = matrices * width + (1 if gpt2 else 0)  # a hidden channel's weights, and its bias
    layers = max(1, round(count / (rest(1) + row * d_ff)))
    off = (rest(layers) + layers * row * d_ff) / count - 1
    usual = abs(off) <= TOLERANCE
    if not usual:
        d_ff = max(multiple, round((count - rest(layers)) / (layers * row * multiple)) * multiple)
    sizes = {
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": kv_heads if grouped else None,
        "d_head": None,
        "d_ff": None if usual and not grouped else d_ff,
        "ff_ratio": None,
        "ff_multiple_of": multiple,
        "tie_embeddings": width < UNTIED_WIDTH,
    }
    return {**sizes, **(_GPT2 if gpt2 else {})}


def _aspect(count: float) -> float:
    """Width / layers, on straight lines between the points of `ASPECTS` over log(count)."""
    sizes = [size for size, _ in ASPECTS]
    at = bisect_left(sizes, count)
    if at in (0, len(sizes)):
        return ASPECTS[min(at, len(sizes) - 1)][1]
    (below, low), (above, high) = ASPECTS[at - 1], ASPECTS[at]
    return low * (high / low) ** (math.log(count / below) / math.log(above / below))


def _round(width: float) -> int:
    """The nearest round width, by ratio."""
    step = next(step for below, step in STEPS if width < below)
    down = max(step, int(width // step) * step)
    return down if width / down <= (down + step) / width else down + step


def _up(width: float, multiple: int) -> int:
    return -int(-width // multiple) * multiple
