"""The registry of sequence mixers: a name in `ModelConfig.pattern` to the class that mixes tokens over time.

A mixer is an `nn.Module` built as `Mixer(config, layer)` with this interface; see `attention.py` for the model:

    forward(x_BTD, segments, state=None) -> (y_BTD, state)   one path for training, prefill and decoding
    init_weights(generator, std, output_std)                every parameter of its own
    new_state(batch, max_len, device, dtype)                its memory for generation, a LayerState (state.py)
    flops_per_token(span_N)                                 mean forward FLOPs beyond its weight matrices, of N
                                                            tokens; `span_N`: how many keys of its document each
                                                            could see, itself included
    parameter_roles() -> {name: Role}                       only for parameters whose role their shape hides

Classes are named by string, so that reading a recipe never imports torch. A new mixer is one file and one line here;
settings of its own are a class in part_configs.py and a field of ModelConfig.
"""

from importlib import import_module
from typing import Any

MIXERS: dict[str, str] = {
    "attention": "model.layers.attention:Attention",
    "window": "model.layers.window:Window",
    "linear_attention": "model.layers.linear_attention:LinearAttention",
    "mamba2": "model.layers.mamba2:Mamba2",
    "h3": "model.layers.h3:H3",
    "rg_lru": "model.layers.rg_lru:RecurrentBlock",
    "short_conv": "model.layers.short_conv:ShortConv",
}

TWO_WAY = ("attention", "window")  # those that can see what comes after a token too (`causal = false`)


def mixer_class(name: str) -> type[Any]:
    """The class behind `name`; ValueError with the known names otherwise."""
    if name not in MIXERS:
        raise ValueError(f"unknown mixer {name!r}: known are {', '.join(sorted(MIXERS))}")
    module, attribute = MIXERS[name].split(":")
    return getattr(import_module(module), attribute)
