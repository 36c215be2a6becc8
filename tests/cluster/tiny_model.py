"""A model small enough for a test: random weights, a tokenizer trained on a few sentences."""

from pathlib import Path
from typing import Any

TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "def add(first, second):\n    return first + second\n",
    "Reading is to the mind what exercise is to the body.",
    "What is two plus three? Two plus three is five.",
] * 50


def make_model(folder: Path, seed: int = 0, max_seq_len: int = 64, **shape: Any) -> Path:
    """Write model.safetensors, config.json, tokenizer.model and tokenizer.json. shape: fields of ModelConfig."""
    from cluster.data.tokenizer.training import TokenizerConfig, train
    from model.checkpoint import save_model
    from model.config import ModelConfig
    from model.decoder import Decoder

    tokenizer = train(TEXT, TokenizerConfig(vocab_size=360))
    config = ModelConfig(d_model=32, n_layers=2, n_heads=2, max_seq_len=max_seq_len, **shape)
    model = Decoder(config.with_vocabulary(tokenizer.vocab_size))
    model.init_weights(seed)
    save_model(model, folder)
    tokenizer.save(folder)
    return folder
