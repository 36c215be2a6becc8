"""A small Llama as `transformers` writes it, with either kind of tokenizer, for tests that damage its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cluster.data.tokenizer.their_tokenizers import byte_level, pieces, write

KINDS = ("bytes", "sentencepiece")


def write_folder(folder: Path, kind: str, **saved: Any) -> None:
    """kind: of KINDS; saved: options of `save_pretrained`."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=640, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=32)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, **saved)
    if kind == "bytes":
        byte_level(folder)
    else:
        pieces(folder, "LlamaTokenizer")
        about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        write(folder, "tokenizer_config.json", about | {"added_tokens_decoder": None})
