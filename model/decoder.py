"""The decoder: embeddings, then layers of a mixer and a feed-forward, then a norm and the head.

    tokens (B, T) -> hidden (B, T, D) by `forward`; hidden -> logits (…, V) by `logits`

They are apart because the loss never makes all logits at once (objectives/next_token.py) and generation needs
only the last token's. With a `State` the same forward is prefill and one-token decoding.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import mup, recompute
from model.config import ModelConfig
from model.init import normal_
from model.layers.attention import Attention
from model.layers.feed_forward import FeedForward
from model.layers.moe import MoE
from model.layers.norm import make_norm
from model.mixers import mixer_class
from model.quantization import Quantization
from model.roles import Role
from model.seeds import int64
from model.segments import Segments
from model.softcap import softcap
from model.state import LayerState, State
from model.train_config import Checkpointing


class Block(nn.Module):
    """One layer: a mixer, then a feed-forward or none, each with its norm before it, after it, or both."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.mixer = mixer_class(config.pattern[layer % len(config.pattern)])(config, layer)
        kind = config.ff_pattern[layer % len(config.ff_pattern)]
        self.feed_forward = None if kind == "none" else (MoE if kind == "moe" else FeedForward)(config)
        before, after = config.norm_position != "post", config.norm_position != "pre"
        has_ff = self.feed_forward is not None
        self.mixer_norm = make_norm(config) if before else None
        self.mixer_post_norm = make_norm(config) if after else None
        self.ff_norm = make_norm(config) if before and has_ff else None
        self.ff_post_norm = make_norm(config) if after and has_ff else None

    def forward(self, x_BTD: Tensor, segments: Segments, state: LayerState | None) -> Tensor:
        mixed, _ = self.mixer(_maybe(self.mixer_norm, x_BTD), segments, state)
        x_BTD = x_BTD + _maybe(self.mixer_post_norm, mixed)
        if self.feed_forward is None:
            return x_BTD
        return x_BTD + _maybe(self.ff_post_norm, self.feed_forward(_maybe(self.ff_norm, x_BTD)))

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        for norm in (self.mixer_norm, self.mixer_post_norm, self.ff_norm, self.ff_post_norm):
            if norm is not None:
                norm.init_weights()
        self.mixer.init_weights(generator, std, output_std)
        if self.feed_forward is not None:
            self.feed_forward.init_weights(generator, std, output_std)


def _maybe(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Unset. nn.Embedding's own draw, on the meta device, would import torch._dynamo: more than a second."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class Decoder(nn.Module):
    """A language model from its config; weights are unset until `init_weights` or a checkpoint fills them."""

    def __init__(self, config: ModelConfig) -> None:
        if config.vocab_size < 1:
            raise ValueError("the model's vocab_size is not set: give it, or take the tokenizer's")
        super().__init__()
        self.config = config
        self.checkpointing: Checkpointing = "none"
        self.quantization: Quantization | None = None  # how its linears are kept, if not as they were trained
        self.embedding = _embedding(config.vocab_size, config.d_model)
        learned = config.position == "learned"
        self.positions = _embedding(config.max_seq_len, config.d_model) if learned else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(
        self, tokens_BT: Tensor, *, segments: Segments | None = None, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        """Hidden states (B, T, D) after the last norm, ready for `logits`.

        segments: documents of packed rows; None: each row is one document (which continues `state`, if
        given).
            With a state, `segments.lengths_B` says how many of each row's T tokens are real (right padding).
        state: is updated in place, and returned with its lengths moved on.
        """
        B, T = tokens_BT.shape
        if state is not None:
            lengths_B = None if segments is None else segments.lengths_B
            segments = Segments.continued(state.lengths_B, T, lengths_B, state.longest)
        elif segments is None:
            segments = Segments.unbroken(B, T, tokens_BT.device)
        x = self.embedding(tokens_BT)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.positions is not None:
            longest, most = segments.longest if state is not None else T, self.config.max_seq_len
            if longest > most and state is not None and segments.lengths_B is not None:
                longest = int((state.lengths_B + segments.lengths_B).max())  # without the pads
            if longest > most:
                raise ValueError(f"{longest} tokens, but the model has {most} learned positions")
            x = x + self.positions(segments.positions_BT.clamp(max=most - 1))
        for layer, block in enumerate(self.blocks):
            if state is None:
                x = recompute.run(block, self.checkpointing, x, segments, None)
            else:
                x = block(x, segments, state.layers[layer])
        if state is not None:
            state = state.advance(T, segments.lengths_B)
        x = self.norm(x)
        scale = mup.output_scale(self.config)
        return (x if scale == 1 else x * scale), state

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the embedding's own weight if they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) -> (…, V) float32, soft-capped if the config says so."""
        if self.quantization is not None and self.head is not None:
            return softcap(self.head(hidden).float(), self.config.logit_softcap)
        logits = F.linear(hidden, self.head_weight.to(hidden.dtype)).float()
        return softcap(logits, self.config.logit_softcap)

    def new_state(
        self,
        batch: int,
        max_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> State:
        """An empty state for `batch` rows of at most `max_len` tokens.

        kv_dtype: of attention's keys and values alone; int8 takes a quarter of float32's memory (kv_cache.py).
        """
        device = self.embedding.weight.device if device is None else device
        dtype = self.embedding.weight.dtype if dtype is None else dtype
        mixers: list[Any] = [block.mixer for block in self.blocks]
        kinds = [kv_dtype if kv_dtype and isinstance(mixer, Attention) else dtype for mixer in mixers]
        layers = [mixer.new_state(batch, max_len, device, kind) for mixer, kind in zip(mixers, kinds, strict=True)]
        return State(layers, torch.zeros(batch, dtype=torch.long, device=device), 0, max_len, batch)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> "Decoder":
        """GPT-2's rule: normal(0, init_std); what writes to the residual stream is smaller by sqrt(2 * layers).

        Under muP hidden matrices are smaller in wider models (mup.py).

        The same seed gives the same weights on every device.
        """
        generator = torch.Generator().manual_seed(int64(seed))
        std = mup.hidden_std(self.config)
        output_std = std / math.sqrt(2 * self.config.n_layers)
        for embedding in (self.embedding, self.positions, self.head):
            if embedding is not None:
                normal_(embedding.weight, self.config.init_std, generator)
        for module in self.modules():
            if isinstance(module, Block):
                module.init_weights(generator, std, output_std)
        self.norm.init_weights()
        return self

    def parameter_roles(self) -> dict[str, Role]:
        """Every parameter's name and what it is to the optimizer."""
        roles = {
            name: Role("matrix") if parameter.ndim == 2 else Role("vector")
            for name, parameter in self.named_parameters()
        }
        for prefix, module in self.named_modules():
            if isinstance(module, Block):
                own = module.mixer.parameter_roles()
                roles |= {f"{prefix}.mixer.{name}": role for name, role in own.items()}
            if isinstance(module, MoE):
                roles |= {f"{prefix}.{name}": role for name, role in module.parameter_roles().items()}
        roles["embedding.weight"] = Role("embedding")
        if self.positions is not None:
            roles["positions.weight"] = Role("embedding")
        if self.head is not None:
            roles["head.weight"] = Role("head")
        return roles
