"""What a longer context changes in a model's config, and what can't have one."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.train.extend import ExtendConfig, extended
from model.config import ModelConfig
from model.part_configs import RopeScaling

YARN = RopeScaling("yarn", 4.0, 128)
LINEAR = RopeScaling("linear", 2.0, 64)


def test_only_the_context_and_rope_change() -> None:
    model = ModelConfig(vocab_size=97, max_seq_len=128, n_kv_heads=2, qk_norm=True)
    longer = extended(model, ExtendConfig(max_seq_len=512, rope_scaling=YARN, rope_theta=5e5))
    assert (longer.max_seq_len, longer.rope_scaling, longer.rope_theta) == (512, YARN, 5e5)
    assert extended(longer, ExtendConfig(max_seq_len=600)) == ModelConfig(
        vocab_size=97, max_seq_len=600, n_kv_heads=2, qk_norm=True, rope_scaling=YARN, rope_theta=5e5
    )
    assert extended(longer, ExtendConfig(max_seq_len=600, rope_scaling=LINEAR)).rope_scaling == LINEAR


@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        ({"position": "learned"}, {"max_seq_len": 512}, "extend one with RoPE or none"),
        ({"position": "none"}, {"max_seq_len": 512, "rope_theta": 1e6}, 'are for position = "rope"'),
        ({}, {"max_seq_len": 128}, "no longer than the model's 128"),
        ({}, {"max_seq_len": 64}, "no longer than the model's 128"),
    ],
)
def test_what_cannot_be_extended_is_refused(model: dict[str, Any], config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        extended(ModelConfig(vocab_size=97, max_seq_len=128, **model), ExtendConfig(**config))
