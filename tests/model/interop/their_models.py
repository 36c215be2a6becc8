"""A tiny model of `transformers` for each architecture, with weights large enough that every part matters."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as t

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
FF = {"intermediate_size": 48}
GQA = {"num_key_value_heads": 2}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def rope(theta: float = 10_000.0, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **more}


LLAMA3 = rope(
    500.0,
    "llama3",
    factor=4.0,
    original_max_position_embeddings=32,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)
YARN = rope(1000.0, "yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=8.0, beta_slow=1.0)
LOCAL = {"full_attention": rope(5000.0, "linear", factor=2.0), "sliding_attention": rope(100.0)}
LOCAL_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

MODELS: dict[str, Callable[[], t.PreTrainedModel]] = {
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=80, **IDS)
    ),
    "llama-tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, **FF, **IDS, tie_word_embeddings=True)),
    "llama-3": lambda: t.LlamaForCausalLM(
        t.LlamaConfig(
            **SIZES, **FF, **GQA, **IDS, head_dim=16, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True
        )
    ),
    "llama-yarn": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, **FF, **GQA, **IDS, rope_parameters=YARN)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZES, **FF, **GQA, **IDS, sliding_window=8)),
    "mistral-full": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZES, **FF, **GQA, **IDS, sliding_window=None)),
    "qwen2": lambda: t.Qwen2ForCausalLM(
        t.Qwen2Config(**SIZES, **FF, **GQA, **IDS, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    ),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, **FF, **GQA, **IDS, head_dim=16)),
    "qwen3-moe": lambda: t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(
            **SIZES,
            **FF,
            **GQA,
            **IDS,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            norm_topk_prob=True,
            mlp_only_layers=[1],
        )
    ),
    "mixtral": lambda: t.MixtralForCausalLM(
        t.MixtralConfig(**SIZES, **FF, **GQA, **IDS, num_local_experts=4, num_experts_per_tok=2)
    ),
    "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**SIZES, **FF, **GQA, **IDS)),
    "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**SIZES, **FF, **IDS, num_key_value_heads=1, head_dim=16)),
    "gemma3": lambda: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(
            **SIZES,
            **FF,
            **GQA,
            **IDS,
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=8,
            layer_types=LOCAL_TYPES,
            rope_parameters=LOCAL,
        )
    ),
    "gemma2-uncapped": lambda: t.Gemma2ForCausalLM(
        t.Gemma2Config(
            **SIZES,
            **FF,
            **GQA,
            **IDS,
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=8,
            attn_logit_softcapping=None,
            final_logit_softcapping=5.0,
        )
    ),
    "mamba2": lambda: t.Mamba2ForCausalLM(
        t.Mamba2Config(
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=8,
            num_heads=4,
            head_dim=16,
            n_groups=2,
            chunk_size=8,
            tie_word_embeddings=True,
            **IDS,
        )
    ),
    "lfm2": lambda: t.Lfm2ForCausalLM(
        t.Lfm2Config(**SIZES, **FF, **GQA, **IDS, layer_types=["conv", "full_attention", "conv"], block_multiple_of=16)
    ),
    "recurrent-gemma": lambda: t.RecurrentGemmaForCausalLM(
        t.RecurrentGemmaConfig(**SIZES, **IDS, intermediate_size=96, num_key_value_heads=1, attention_window_size=8)
    ),
    "bamba": lambda: t.BambaForCausalLM(
        t.BambaConfig(
            **SIZES,
            **FF,
            **GQA,
            **IDS,
            attn_layer_indices=[1],
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_state=8,
            mamba_n_groups=2,
            mamba_chunk_size=8,
        )
    ),
}


@cache
def their_model(name: str) -> t.PreTrainedModel:
    """Seeded and shaken, in evaluation mode, attention without a fused kernel; it never stops by itself."""
    torch.manual_seed(0)
    model = MODELS[name]()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    return model.eval()


def their_gradients(model: t.PreTrainedModel) -> dict[str, torch.Tensor]:
    """By the names of the checkpoint: the model itself keeps all experts of a layer in one tensor."""
    found: dict[str, torch.Tensor] = {}
    mixtral = model.config.model_type == "mixtral"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        name = name.replace(".mlp.", ".block_sparse_moe.") if mixtral else name
        stem = name.rpartition(".")[0]
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(parameter.grad):
                found[f"{stem}.{e}.{gate}.weight"], found[f"{stem}.{e}.{up}.weight"] = both.chunk(2)
        elif name.endswith("experts.down_proj"):
            found |= {f"{stem}.{e}.{down}.weight": g for e, g in enumerate(parameter.grad)}
        else:
            found[name] = parameter.grad
    return found
