"""The keys that say what each layer is: which attention sees a window only, which layer is no attention at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.config import ModelConfig
from model.interop.keys import Ours, Theirs, Unsupported


def shortest(layers: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest pattern that, repeated over depth, gives these layers; in linear time (Knuth, Morris, Pratt)."""
    borders = [0]  # of each beginning: how much of it stands at its start and at its end
    for i in range(1, len(layers)):
        size = borders[-1]
        while size and layers[i] != layers[size]:
            size = borders[size - 1]
        borders.append(size + (layers[i] == layers[size]))
    return tuple(layers[: len(layers) - borders[-1]])


@dataclass(frozen=True)
class SlidingWindow:
    """Mistral's: every layer's attention sees `sliding_window` keys.

    Or all of them if it is null, or if a key that is the switch says so.
    """

    default: int | None
    switch: str | None = None

    def read(self, theirs: Theirs) -> Ours:
        on = self.switch is None or theirs.get(self.switch, False)
        window = theirs.get("sliding_window", self.default) if on else None
        return {"pattern": ("attention",)} if window is None else {"pattern": ("window",), "window": window}

    def write(self, config: ModelConfig) -> Theirs:
        on = "window" in config.layer_mixers
        return {"sliding_window": config.window if on else None} | ({self.switch: on} if self.switch else {})


@dataclass(frozen=True)
class LayerTypes:
    """`layer_types`, a name for each layer; `otherwise` makes them from older keys where it is missing."""

    mixers: dict[str, str] = field(
        default_factory=lambda: {"full_attention": "attention", "sliding_attention": "window"}
    )
    otherwise: Callable[[Theirs], list[str]] = lambda theirs: ["full_attention"] * theirs["num_hidden_layers"]

    def read(self, theirs: Theirs) -> Ours:
        types = theirs.get("layer_types") or self.otherwise(theirs)
        for number, name in enumerate(types):
            if name not in self.mixers:
                raise Unsupported.key(f"layer_types[{number}]", name, f"supported are {', '.join(self.mixers)}")
        return {"pattern": shortest([self.mixers[name] for name in types])}

    def write(self, config: ModelConfig) -> Theirs:
        names = {mixer: name for name, mixer in self.mixers.items()}
        return {"layer_types": [names.get(mixer, mixer) for mixer in config.layer_mixers]}


@dataclass(frozen=True)
class QwenLayers:
    """Qwen's: `use_sliding_window` lets the layers from `max_window_layers` on see a window only."""

    default_window: int = 4096
    default_first: int = 28

    def read(self, theirs: Theirs) -> Ours:
        window = theirs.get("sliding_window", self.default_window) if theirs.get("use_sliding_window") else None
        first = theirs.get("max_window_layers", self.default_first)

        def types(theirs: Theirs) -> list[str]:
            depth = theirs["num_hidden_layers"]
            return ["sliding_attention" if window and i >= first else "full_attention" for i in range(depth)]

        ours = LayerTypes(otherwise=types).read(theirs)
        if "window" in ours["pattern"]:
            if window is None:
                raise Unsupported.key(
                    "sliding_window", window, "layer_types names layers with a window, so it needs one"
                )
            ours["window"] = window
        return ours

    def write(self, config: ModelConfig) -> Theirs:
        windows = [i for i, mixer in enumerate(config.layer_mixers) if mixer == "window"]
        return LayerTypes().write(config) | {
            "use_sliding_window": bool(windows),
            "sliding_window": config.window if windows else None,
            **({"max_window_layers": windows[0]} if windows else {}),
        }


@dataclass(frozen=True)
class SparseLayers:
    """Qwen's: every `decoder_sparse_step`-th layer has experts, except those of `mlp_only_layers`."""

    def read(self, theirs: Theirs) -> Ours:
        step, dense = theirs.get("decoder_sparse_step", 1), set(theirs.get("mlp_only_layers") or ())
        depth = theirs["num_hidden_layers"]
        kinds = ["moe" if i not in dense and (i + 1) % step == 0 else "dense" for i in range(depth)]
        return {"ff_pattern": shortest(kinds)}

    def write(self, config: ModelConfig) -> Theirs:
        dense = [i for i, kind in enumerate(config.layer_feed_forwards) if kind != "moe"]
        return {"decoder_sparse_step": 1, "mlp_only_layers": dense}
