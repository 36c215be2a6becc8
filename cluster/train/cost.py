"""What a training would cost: its FLOPs, and the memory of one worker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.cost import Cost, Machine
from cluster.interop.base import BaseConfig

if TYPE_CHECKING:
    from cluster.stage import Step
    from model.config import ModelConfig
    from model.memory import Memory
    from model.train_config import TrainConfig


def model_of(step: Step) -> ModelConfig:
    """The model that a step makes, as far as its recipe tells: without looking at any artifact."""
    if isinstance(step.config, BaseConfig):
        return step.config.network
    if "model" not in step.inputs:
        vocab_size = step.inputs["tokenizer"].config.vocab_size
        return replace(step.config.model, vocab_size=0).with_vocabulary(vocab_size)
    model, extended = model_of(step.inputs["model"]), getattr(step.config, "extended", None)
    return extended(model) if extended else model


def training_cost(step: Step, machine: Machine) -> Cost:
    """Every token of every step, forward and backward."""
    from model.count import flops_per_token

    config, train = model_of(step), step.config.train
    tokens = train.steps * train.batch_size * train.seq_len
    work = machine.work("update", tokens, flops_per_token(config, train.seq_len) * tokens)
    needed = memory_of(config, train, train.seq_len, machine)
    return Cost(step.name, (work,), needed.total, train.activation_checkpointing)


def memory_of(config: ModelConfig, train: TrainConfig, length: int, machine: Machine) -> Memory:
    """What a worker's micro-batch of rows of `length` tokens needs."""
    import torch

    from model.memory import memory

    dtype: Any = machine.dtype or torch.float32
    return memory(
        config,
        train.rows_at_once(train.batch_size, length, machine.device, dtype.itemsize),
        length,
        optimizer=train.optimizer,
        checkpointing=train.activation_checkpointing,
        dtype=dtype,
        device=machine.device,
    )
