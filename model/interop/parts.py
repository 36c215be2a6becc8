"""What most families share: the keys and tensors of attention and of feed-forwards, under Llama's names."""

from collections.abc import Iterator, Sequence

from model.config import ModelConfig
from model.interop.keys import Declaration, Key, value
from model.interop.weights import SAME, Layout, Pair, Rows, Stacked, Turned, same


def sizes(
    vocab: int, width: int, ff: int, layers: int, heads: int, context: int, eps: float
) -> tuple[Declaration, ...]:
    """The keys of a model's sizes, with a family's defaults."""
    return (
        Key("vocab_size", "vocab_size", vocab),
        Key("hidden_size", "d_model", width),
        Key("intermediate_size", "d_ff", ff),
        Key("num_hidden_layers", "n_layers", layers),
        Key("num_attention_heads", "n_heads", heads),
        Key("max_position_embeddings", "max_seq_len", context),
        Key("rms_norm_eps", "norm_eps", eps),
        Key("initializer_range", "init_std", 0.02),
    )


def ends(c: ModelConfig, norm: str = "model.norm", embedding: str = "model.embed_tokens") -> Iterator[Pair]:
    """Embedding, last norm, and the head if it is a matrix of its own."""
    yield same("embedding.weight", f"{embedding}.weight")
    yield same("norm.weight", f"{norm}.weight")
    if not c.tie_embeddings:
        yield same("head.weight", "lm_head.weight")


def attention(c: ModelConfig, ours: str, theirs: str, out: str = "o_proj", norms: str = "{}_norm") -> Iterator[Pair]:
    """Queries, keys and values are apart in theirs, one matrix in ours; RoPE's pairs are permuted."""
    turned: Layout = Turned(c.head_dim, c.rope_dim) if c.position == "rope" else SAME
    q, kv = c.n_heads * c.head_dim, c.kv_heads * c.head_dim
    rows = Rows(((q, turned), (kv, turned), (kv, SAME)))
    for kind in _kinds(value(c, "qkv_bias")):
        yield Pair(f"{ours}.qkv.{kind}", tuple(f"{theirs}.{x}_proj.{kind}" for x in "qkv"), rows)
    for kind in _kinds(value(c, "out_bias")):
        yield same(f"{ours}.out.{kind}", f"{theirs}.{out}.{kind}")
    if c.qk_norm:
        for x in "qk":
            yield Pair(f"{ours}.{x}_norm.weight", (f"{theirs}.{norms.format(x)}.weight",), turned)


def feed_forward(
    c: ModelConfig, ours: str, theirs: str, names: Sequence[str] = ("gate_proj", "up_proj", "down_proj")
) -> Iterator[Pair]:
    for x, name in zip(("gate", "up", "down"), names, strict=True):
        for kind in _kinds(value(c, "ff_bias")):
            yield same(f"{ours}.{x}.{kind}", f"{theirs}.{name}.{kind}")


def experts(c: ModelConfig, ours: str, theirs: str, names: Sequence[str]) -> Iterator[Pair]:
    """A router, and stacks of the experts' matrices."""
    yield same(f"{ours}.router.weight", f"{theirs}.gate.weight")
    for x, name in zip(("gate", "up", "down"), names, strict=True):
        each = tuple(f"{theirs}.experts.{e}.{name}.weight" for e in range(c.moe.n_experts))
        yield Pair(f"{ours}.{x}", each, Stacked())


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)
