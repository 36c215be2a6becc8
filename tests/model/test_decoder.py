"""The decoder against `transformers`, and the properties every mixer and every stack of them must have."""

import math

import pytest
import torch
from closeness import assert_equal_up_to_rounding, rounding
from small_models import SHAPES, lively, random_tokens
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.config import ModelConfig
from model.decoder import Decoder
from model.objectives.next_token import Batch, next_token
from model.segments import Segments


def copy_llama(ours: Decoder, theirs) -> dict[str, str]:
    """Their weights into ours; returns which of ours is (a stack of) which of theirs."""
    names = {"embedding.weight": ["model.embed_tokens.weight"], "norm.weight": ["model.norm.weight"]}
    if ours.head is not None:
        names["head.weight"] = ["lm_head.weight"]
    for i in range(ours.config.n_layers):
        a, b = f"blocks.{i}.", f"model.layers.{i}."
        names[a + "mixer_norm.weight"] = [b + "input_layernorm.weight"]
        names[a + "ff_norm.weight"] = [b + "post_attention_layernorm.weight"]
        names[a + "mixer.qkv.weight"] = [b + f"self_attn.{x}_proj.weight" for x in "qkv"]
        names[a + "mixer.out.weight"] = [b + "self_attn.o_proj.weight"]
        for x in ("gate", "up", "down"):
            names[a + f"feed_forward.{x}.weight"] = [b + f"mlp.{x}_proj.weight"]
        if ours.config.qk_norm:
            for x in "qk":
                names[a + f"mixer.{x}_norm.weight"] = [b + f"self_attn.{x}_norm.weight"]
    return load(ours, theirs, names)


def load(ours, theirs, names):
    given = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(torch.cat([as_ours(given[n], n, ours.config) for n in names[name]]))
    return names


def as_ours(tensor, name, config):
    """GPT-2's Conv1D keeps its matrices as (in, out); Llama's heads keep RoPE's pairs as (i, i + D/2)."""
    if any(part in name for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return tensor.t()
    if any(part in name for part in ("q_proj", "k_proj", "q_norm", "k_norm")):
        heads = tensor.view(-1, config.head_dim, *tensor.shape[1:])
        turned, rest = heads.split((config.rope_dim, config.head_dim - config.rope_dim), 1)
        pairs = turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return torch.cat((pairs, rest), 1).reshape(tensor.shape)
    return tensor


def shake(theirs):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return theirs.eval()


def compare(ours, theirs, names):
    """Logits to 1e-4 and gradients to 1e-3 of an ordinary next-token loss."""
    tokens = random_tokens(3, 20)
    expected = theirs(tokens).logits
    hidden, _ = ours(tokens)
    torch.testing.assert_close(ours.logits(hidden), expected, atol=1e-4, rtol=1e-4)
    targets = random_tokens(3, 20, seed=5)
    loss, count, _ = next_token(ours, Batch(tokens, targets, torch.arange(20).expand(3, 20)))
    (loss / count).backward()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    given = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = torch.cat([as_ours(given[n].grad, n, ours.config) for n in names[name]])
        torch.testing.assert_close(parameter.grad, expected, atol=1e-3 * expected.abs().max().item(), rtol=1e-3)


COMMON = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(("kv_heads", "tied"), [(4, True), (2, False), (1, True)])
def test_llama_equals_transformers(kv_heads, tied):
    theirs = LlamaForCausalLM(
        LlamaConfig(
            **COMMON,
            num_key_value_heads=kv_heads,
            intermediate_size=96,
            tie_word_embeddings=tied,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    )
    shape = ModelConfig(97, 32, 2, 4, n_kv_heads=kv_heads, d_ff=96, tie_embeddings=tied)
    ours = Decoder(shape)
    compare(ours, theirs, copy_llama(ours, shake(theirs)))


def test_qk_norm_and_head_size_equal_transformers_qwen3():
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            **COMMON,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=96,
            tie_word_embeddings=False,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
    )
    shape = ModelConfig(
        97, 32, 2, 4, n_kv_heads=2, d_head=16, d_ff=96, tie_embeddings=False, qk_norm=True, rope_theta=500.0
    )
    ours = Decoder(shape)
    compare(ours, theirs, copy_llama(ours, shake(theirs)))


def test_gpt2_equals_transformers():
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    ours = Decoder(SHAPES["gpt2"])
    names = {"embedding.weight": ["transformer.wte.weight"], "positions.weight": ["transformer.wpe.weight"]}
    names |= {f"norm.{x}": [f"transformer.ln_f.{x}"] for x in ("weight", "bias")}
    for i in range(2):
        for x in ("weight", "bias"):
            a, b = f"blocks.{i}.", f"transformer.h.{i}."
            names[f"{a}mixer_norm.{x}"] = [f"{b}ln_1.{x}"]
            names[f"{a}ff_norm.{x}"] = [f"{b}ln_2.{x}"]
            names[f"{a}mixer.qkv.{x}"] = [f"{b}attn.c_attn.{x}"]
            names[f"{a}mixer.out.{x}"] = [f"{b}attn.c_proj.{x}"]
            names[f"{a}feed_forward.up.{x}"] = [f"{b}mlp.c_fc.{x}"]
            names[f"{a}feed_forward.down.{x}"] = [f"{b}mlp.c_proj.{x}"]
    compare(ours, theirs, load(ours, shake(theirs), names))


PACKINGS = {
    "three in a row": [[7, 1, 24], [32], [16, 16]],
    "lengths of every kind": [[1, 1, 1, 29], [13, 19], [31, 1]],
    "one each": [[32], [32], [32]],
}


def positions_of(packing: list[list[int]]) -> torch.Tensor:
    return torch.stack([torch.cat([torch.arange(n) for n in row]) for row in packing])


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS.keys())
def test_each_document_of_a_packed_row_is_as_if_alone(model, packing):
    tokens, segments = random_tokens(3, 32), Segments.from_positions(positions_of(packing))
    weights = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    learned = [p for p in model.parameters() if p.requires_grad]

    def packed() -> list[torch.Tensor]:
        out, _ = model(tokens, segments=segments)
        return [out, *torch.autograd.grad((out * weights).sum(), learned, materialize_grads=True)]

    alone, total = torch.zeros(3, 32, 32), torch.zeros(())
    for row, lengths in enumerate(packing):
        start = 0
        for length in lengths:
            at = slice(start, start + length)
            out, _ = model(tokens[row : row + 1, at])
            alone[row, at] = out[0].detach()
            total = total + (out * weights[row : row + 1, at]).sum()
            start += length
    expected = [alone, *torch.autograd.grad(total, learned, materialize_grads=True)]
    assert_equal_up_to_rounding(packed(), expected, rounding(packed, learned))


def test_document_a_never_changes_document_b(model):
    segments = Segments.from_positions(positions_of([[11, 21], [32]]))
    tokens = random_tokens(2, 32)
    before, _ = model(tokens, segments=segments)
    changed = tokens.clone()
    changed[0, :11] = (changed[0, :11] + 1) % 97
    after, _ = model(changed, segments=segments)
    assert torch.equal(before[0, 11:], after[0, 11:])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0, :11], after[0, :11])


def test_no_token_sees_a_later_one(causal_model):
    tokens = random_tokens(2, 32)
    before, _ = causal_model(tokens)
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 97
    after, _ = causal_model(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])


@torch.no_grad()
def test_prefill_then_one_token_at_a_time_equals_the_full_forward(causal_model):
    lengths = torch.tensor([1, 9, 17])
    tokens, more = random_tokens(3, 17), random_tokens(3, 8, seed=1)
    state = causal_model.new_state(3, 32)
    hidden, state = causal_model(tokens, segments=Segments.padded(lengths, 17), state=state)
    for row, length in enumerate(lengths.tolist()):
        full, _ = causal_model(tokens[row : row + 1, :length])
        torch.testing.assert_close(hidden[row, :length], full[0], atol=2e-5, rtol=1e-4)
    steps = []
    for t in range(8):
        hidden, state = causal_model(more[:, t : t + 1], state=state)
        steps.append(hidden)
    assert state.lengths_B.tolist() == [9, 17, 25]
    decoded = torch.cat(steps, 1)
    for row, length in enumerate(lengths.tolist()):
        full, _ = causal_model(torch.cat((tokens[row, :length], more[row]))[None])
        torch.testing.assert_close(decoded[row], full[0, length:], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_several_tokens_after_a_prefill_equal_the_full_forward(causal_model):
    """A conversation's next turn: ragged again, on top of ragged lengths."""
    first, second = torch.tensor([4, 10]), torch.tensor([7, 3])
    tokens, more = random_tokens(2, 10), random_tokens(2, 7, seed=1)
    _, state = causal_model(tokens, segments=Segments.padded(first, 10), state=causal_model.new_state(2, 30))
    hidden, state = causal_model(more, segments=Segments.padded(second, 7), state=state)
    hidden_next, _ = causal_model(more[:, :1], state=state)
    for row in range(2):
        text = torch.cat((tokens[row, : first[row]], more[row, : second[row]], more[row, :1]))
        full, _ = causal_model(text[None])
        torch.testing.assert_close(hidden[row, : second[row]], full[0, first[row] : -1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(hidden_next[row, 0], full[0, -1], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_state_goes_on_with_only_some_rows(causal_model):
    tokens = random_tokens(3, 6)
    _, state = causal_model(tokens, state=causal_model.new_state(3, 16))
    kept = torch.tensor([2, 0])
    hidden, state = causal_model(tokens[kept, :1], state=state.select(kept))
    full, _ = causal_model(torch.cat((tokens, tokens[:, :1]), 1))
    torch.testing.assert_close(hidden[:, 0], full[kept, -1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_activation_checkpointing_changes_no_gradient_by_a_bit(model, kind):
    batch = Batch(random_tokens(2, 32), random_tokens(2, 32, seed=1), positions_of([[5, 27], [32]]))
    gradients = []
    for checkpointing in ("none", kind):
        model.checkpointing = checkpointing
        model.zero_grad()
        next_token(model, batch)[0].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_same_seed_gives_the_same_weights(config):
    one, two, other = (Decoder(config).init_weights(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def test_initialisation_fills_every_weight_and_starts_near_a_uniform_guess(config):
    with torch.device("meta"):
        model = Decoder(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    model.init_weights(0)
    assert all(p.isfinite().all() for p in model.parameters())
    batch = Batch(random_tokens(4, 32), random_tokens(4, 32, seed=1), torch.arange(32).expand(4, 32))
    loss, count, _ = next_token(model, batch)
    assert abs(float(loss.detach() / count) - math.log(97)) < 0.2


def test_too_many_tokens_for_learned_positions_are_refused():
    with pytest.raises(ValueError, match="65 tokens, but the model has 64 learned positions"):
        lively(SHAPES["gpt2"])(random_tokens(1, 65))


def test_a_model_without_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size is not set"):
        Decoder(ModelConfig())
