"""Attention's options against `transformers`, and attention that looks both ways."""

import pytest
import torch
from small_models import TWO_WAY, lively, random_tokens
from test_decoder import COMMON, compare, load, positions_of, shake
from transformers import (
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from model.config import ModelConfig
from model.decoder import Decoder
from model.kernels import varlen
from model.segments import Segments, pads_apart

WHERE = {
    "embedding": ["model.embed_tokens"],
    "norm": ["model.norm"],
    "head": ["lm_head"],
    "mixer.qkv": [f"self_attn.{x}_proj" for x in "qkv"],
    "mixer.out": ["self_attn.o_proj"],
    "mixer.q_norm": ["self_attn.q_norm"],
    "mixer.k_norm": ["self_attn.k_norm"],
    "feed_forward.gate": ["mlp.gate_proj"],
    "feed_forward.up": ["mlp.up_proj"],
    "feed_forward.down": ["mlp.down_proj"],
}


def copy(ours: Decoder, theirs, norms: dict[str, str]) -> dict[str, list[str]]:
    """Their weights into ours; norms: which of ours in a block is which of theirs."""
    where = WHERE | {mine: [yours] for mine, yours in norms.items()}
    names = {}
    for name, _ in ours.named_parameters():
        module, kind = name.rsplit(".", 1)
        _, i, rest = module.split(".", 2) if module.startswith("blocks") else (None, None, module)
        prefix = "" if i is None else f"model.layers.{i}."
        names[name] = [f"{prefix}{yours}.{kind}" for yours in where[rest]]
    return load(ours, shake(theirs), names)


PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
PRE = {"mixer_norm": "input_layernorm", "ff_norm": "post_attention_layernorm"}
SHAPE = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 96, "tie_embeddings": False}


def test_qk_norm_over_all_heads_and_norms_after_sublayers_equal_transformers_olmo2():
    config = Olmo2Config(
        **COMMON,
        num_key_value_heads=2,
        intermediate_size=96,
        rms_norm_eps=1e-5,
        rope_parameters=PLAIN,
        pad_token_id=None,
    )
    theirs = Olmo2ForCausalLM(config)
    shape = ModelConfig(**SHAPE, n_kv_heads=2, norm_position="post", qk_norm=True, qk_norm_over="all")
    ours = Decoder(shape)
    norms = {"mixer_post_norm": "post_attention_layernorm", "ff_post_norm": "post_feedforward_layernorm"}
    compare(ours, theirs, copy(ours, theirs, norms))


def test_biases_of_queries_keys_and_values_alone_equal_transformers_qwen2():
    config = Qwen2Config(
        **COMMON,
        num_key_value_heads=2,
        intermediate_size=96,
        rms_norm_eps=1e-5,
        rope_parameters=PLAIN,
        tie_word_embeddings=False,
    )
    theirs, ours = Qwen2ForCausalLM(config), Decoder(ModelConfig(**SHAPE, n_kv_heads=2, qkv_bias=True))
    compare(ours, theirs, copy(ours, theirs, PRE))


def test_rope_over_a_part_of_each_head_equals_transformers_stablelm():
    config = StableLmConfig(
        **COMMON,
        num_key_value_heads=4,
        intermediate_size=96,
        layer_norm_eps=1e-5,
        rope_parameters=PLAIN | {"partial_rotary_factor": 0.5},
        use_qkv_bias=True,
        tie_word_embeddings=False,
    )
    theirs = StableLmForCausalLM(config)
    biases = {"bias": True, "qkv_bias": True, "out_bias": False, "ff_bias": False}
    ours = Decoder(ModelConfig(**SHAPE, **biases, norm="layernorm", rope_fraction=0.5))
    compare(ours, theirs, copy(ours, theirs, PRE))


def test_an_attention_scale_multiplies_the_scores():
    """As if the queries were as much larger."""
    plain, scaled = (lively(ModelConfig(**SHAPE, attention_scale=s)) for s in (None, 3 / 8**0.5))
    tokens = random_tokens(2, 12)
    expected, _ = scaled(tokens)
    with torch.no_grad():
        for block in plain.blocks:
            block.mixer.qkv.weight[:32] *= 3  # type: ignore
    torch.testing.assert_close(plain(tokens)[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", TWO_WAY.values(), ids=TWO_WAY.keys())
def test_a_two_way_token_sees_later_ones(shape):
    model, tokens = lively(shape), random_tokens(2, 24)
    before, _ = model(tokens)
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 97
    after, _ = model(changed)
    assert not torch.equal(before[:, 18], after[:, 18])


@pytest.mark.parametrize("shape", TWO_WAY.values(), ids=TWO_WAY.keys())
@pytest.mark.parametrize("how", ["lengths", "a document of pads"])
def test_pads_change_nothing_where_attention_looks_both_ways(shape, how):
    model, tokens, lengths = lively(shape), random_tokens(3, 24), torch.tensor([24, 1, 13])
    apart = Segments.from_positions(pads_apart(lengths, 24))
    padded, _ = model(tokens, segments=Segments.padded(lengths, 24) if how == "lengths" else apart)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = model(tokens[row : row + 1, :length])
        torch.testing.assert_close(padded[row, :length], alone[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", TWO_WAY.values(), ids=TWO_WAY.keys())
def test_a_two_way_model_has_no_state(shape):
    with pytest.raises(ValueError, match=r"causal = false.*run the model without a state"):
        lively(shape).new_state(1, 8)


def test_no_mask_exists_where_no_document_is_padded(monkeypatch):
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, mask=None, **more: seen.append(mask) or attend(q, k, v, mask, **more),
    )
    model = lively(TWO_WAY["two-way"])
    positions = positions_of([[16, 16], [16, 16]])
    model(random_tokens(2, 32), segments=Segments.from_positions(positions))
    assert seen == [None, None]
    seen.clear()
    positions = positions_of([[14, 18], [15, 17]])
    model(random_tokens(2, 32), segments=Segments.from_positions(positions))
    assert any(mask is not None for mask in seen)
    assert all(mask is None or mask.shape[1:3] == (1, 1) for mask in seen), "a mask over keys only"


def plain_kernel(q, k, v, bounds, bounds_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch's varlen_attn says it does, a document at a time."""
    assert torch.equal(bounds, bounds_k) and bounds.dtype == torch.int32
    assert int(bounds.diff().max()) <= max_q == max_k and enable_gqa == (q.shape[1] != k.shape[1])
    parts = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        one = (x[start:end].transpose(0, 1) for x in (q, k, v))
        causal = window_size == (-1, 0)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            *one, is_causal=causal, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(mixed.transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("causal", [True, False])
def test_one_kernel_for_all_documents_equals_documents_regrouped(monkeypatch, causal):
    config = ModelConfig(**{**SHAPE, "n_kv_heads": 2, "qk_norm": True, "causal": causal})
    model, tokens = lively(config), random_tokens(3, 32)
    segments = Segments.from_positions(positions_of([[7, 1, 24], [32], [16, 16]]))
    expected, _ = model(tokens, segments=segments)
    calls = []
    monkeypatch.setattr(varlen, "usable", lambda x, segments: not segments.whole)
    monkeypatch.setattr(varlen, "varlen_attn", lambda *a, **k: calls.append(1) or plain_kernel(*a, **k))
    given, _ = model(tokens, segments=segments)
    assert len(calls) == config.n_layers
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-4)
