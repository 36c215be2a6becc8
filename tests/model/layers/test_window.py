"""Windows and global tokens against a dense mask, `transformers`, and themselves token by token."""

import pytest
import torch
from small_models import SMALL, lively, random_tokens
from test_attention import SHAPE, copy
from test_decoder import COMMON, compare
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from model.config import ModelConfig
from model.decoder import Decoder
from model.generate.decoding import Decoding
from model.generate.engine import generate
from model.layers.window import Window
from model.part_configs import RopeScaling
from model.segments import Segments


def naive(mixer: Window, x_BTD: torch.Tensor, causal: bool) -> torch.Tensor:
    """Every score, and a T x T mask made pair by pair from the definition."""
    q, k, v = mixer._heads(mixer.qkv(x_BTD))
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    T, W, G = x_BTD.shape[1], mixer.window, mixer.global_tokens
    seen = torch.zeros(T, T, dtype=torch.bool)
    for p in range(T):
        for j in range(T):
            near = p - W < j < p + W
            seen[p, j] = (near or j < G) and j <= p if causal else near or j < G or p < G
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return mixer.out(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-way"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    ("window", "global_tokens", "T"),
    [(1, 0, 9), (4, 0, 16), (4, 2, 19), (4, 9, 23), (5, 1, 6), (7, 3, 29), (8, 8, 33), (16, 4, 16), (3, 40, 20)],
)
def test_window_and_global_tokens_equal_a_dense_mask(window, global_tokens, T, kv_heads, causal):
    shape = ModelConfig(
        **SMALL, pattern=("window",), window=window, global_tokens=global_tokens, n_kv_heads=kv_heads, causal=causal
    )
    mixer = lively(shape).blocks[0].mixer
    x = torch.randn(2, T, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(2, T, 32, generator=torch.Generator().manual_seed(1))
    results = []
    for forward in (lambda x: mixer(x, Segments.unbroken(2, T))[0], lambda x: naive(mixer, x, causal)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * weights).sum().backward()
        results.append([y.detach(), x.grad.clone(), *(p.grad.clone() for p in mixer.parameters())])
    for given, expected in zip(*results, strict=True):
        torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


def test_local_and_global_layers_equal_transformers_gemma3():
    config = Gemma3TextConfig(
        **COMMON,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=96,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=5,
        rms_norm_eps=1e-5,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        tie_word_embeddings=True,
        attn_implementation="eager",
        pad_token_id=None,
    )
    theirs = Gemma3ForCausalLM(config)
    shape = ModelConfig(
        **SHAPE | {"tie_embeddings": True},
        n_kv_heads=2,
        pattern=("window", "attention"),
        window=6,
        rope_theta=5000.0,
        rope_theta_local=100.0,
        rope_scaling=RopeScaling("linear", 8.0),
        attention_scale=5**-0.5,
        norm="rmsnorm_plus_one",
        norm_position="sandwich",
        qk_norm=True,
        feed_forward="geglu",
        embedding_scale=32**0.5,
    )
    ours = Decoder(shape)
    norms = {
        "mixer_norm": "input_layernorm",
        "mixer_post_norm": "post_attention_layernorm",
        "ff_norm": "pre_feedforward_layernorm",
        "ff_post_norm": "post_feedforward_layernorm",
    }
    compare(ours, theirs, copy(ours, theirs, norms))


GENERATION = {
    "window": {"window": 4},
    "global": {"window": 4, "global_tokens": 3},
    "more global tokens than the window": {"window": 3, "global_tokens": 7},
    "hybrid": {"window": 5, "global_tokens": 1, "pattern": ("window", "attention", "window")},
    "grouped": {"window": 4, "global_tokens": 2, "n_kv_heads": 1},
}


@pytest.fixture(params=GENERATION.values(), ids=GENERATION.keys())
def model(request) -> Decoder:
    return lively(ModelConfig(**SMALL | {"n_layers": 3}, **{"pattern": ("window",)} | request.param))


@torch.no_grad()
def test_pieces_of_any_length_equal_the_full_forward_past_several_windows(model):
    """Ragged prefill; then pieces shorter, as long and longer than the window, some of whose rows are empty."""
    tokens = random_tokens(3, 64)
    state, absorbed = model.new_state(3, 64), [0, 0, 0]
    full, _ = model(tokens)
    for lengths in (
        [1, 7, 13],
        [1, 1, 1],
        [2, 0, 5],
        [11, 9, 1],
        [1, 1, 1],
        [4, 3, 5],
        [0, 17, 2],
        [1, 1, 1],
        [6, 6, 6],
    ):
        T = max(lengths)
        piece = torch.zeros(3, T, dtype=torch.long)
        for row, (start, n) in enumerate(zip(absorbed, lengths, strict=True)):
            piece[row, :n] = tokens[row, start : start + n]
        segments = None if min(lengths) == T else Segments.padded(torch.tensor(lengths), T)
        hidden, state = model(piece, segments=segments, state=state)
        for row, (start, n) in enumerate(zip(absorbed, lengths, strict=True)):
            torch.testing.assert_close(hidden[row, :n], full[row, start : start + n], atol=2e-5, rtol=1e-4)
        absorbed = [start + n for start, n in zip(absorbed, lengths, strict=True)]
    assert state.lengths_B.tolist() == absorbed and min(absorbed) > 5 * model.config.window


@torch.no_grad()
def test_generation_past_several_windows_follows_the_full_forward(model):
    prompts = [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9], [7, 8, 9]]
    for prompt, completion in zip(
        prompts, generate(model, prompts, Decoding(max_new_tokens=24, temperature=0.0)), strict=True
    ):
        text = torch.tensor([prompt + completion.tokens])
        logits = model.logits(model(text)[0])[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == completion.tokens


def test_the_state_does_not_grow_with_the_text(model):
    window = next(b.mixer for b in model.blocks if isinstance(b.mixer, Window))
    short, long = (window.new_state(2, n, "cpu", torch.float32) for n in (64, 100_000))
    assert short.k.size == long.k.size
    assert long.k.size[1] == model.config.window + model.config.global_tokens
    assert window.new_state(2, 2, "cpu", torch.float32).k.size[1] <= 4


def kept(T: int) -> int:
    """Bytes that autograd keeps of a window layer for a text of T tokens."""
    mixer = lively(ModelConfig(**SMALL, pattern=("window",), window=8, global_tokens=2)).blocks[0].mixer
    storages: dict[int, int] = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, T, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = mixer(x, Segments.unbroken(1, T))
    del y
    return sum(storages.values())


def test_memory_for_backward_grows_linearly():
    assert kept(2048) < 2.1 * kept(1024)
