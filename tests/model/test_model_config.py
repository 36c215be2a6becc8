"""Configs: what follows from what, what is refused, and how pydantic reads them."""

import subprocess
import sys
from dataclasses import fields

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from model.config import ModelConfig
from model.train_config import TrainConfig


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()


def test_sizes_follow_from_others():
    config = ModelConfig(d_model=192, n_heads=3)
    assert (config.head_dim, config.kv_heads, config.ff_width) == (64, 3, 512)
    assert ModelConfig(d_model=192, n_heads=3, feed_forward="gelu").ff_width == 768
    assert ModelConfig(d_model=100, n_heads=5, ff_ratio=8, ff_multiple_of=64).ff_width == 832
    assert ModelConfig(d_ff=77).ff_width == 77
    assert ModelConfig(n_layers=3, pattern=("attention",)).layer_mixers == ("attention",) * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"feed_forward": "swigul"}, "did you mean 'swiglu'"),
        ({"pattern": ("atention",)}, "did you mean 'attention'"),
        ({"pattern": ()}, "pattern is empty"),
        ({"d_model": 100, "n_heads": 3}, "not a multiple of n_heads"),
        ({"n_heads": 4, "n_kv_heads": 3}, "does not divide n_heads"),
        ({"d_model": 12, "n_heads": 4}, "must be even"),
        ({"n_layers": 0}, "at least 1"),
        ({"logit_softcap": 0.0}, "greater than 0"),
    ],
)
def test_shapes_that_can_t_work_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"lr": 0.0}, "greater than 0"),
        ({"beta2": 1.0}, "below 1"),
        ({"steps": 0}, "at least 1"),
        ({"min_lr_ratio": 1.5}, "between 0 and 1"),
    ],
)
def test_training_that_can_t_work_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**given)


def test_pydantic_reads_them_as_parts_of_a_recipe():
    recipe = Recipe.model_validate({"model": {"d_model": 128, "pattern": ["attention"]}, "train": {"lr": 0.01}})
    assert recipe.model == ModelConfig(d_model=128) and recipe.train.lr == 0.01
    with pytest.raises(ValidationError, match="n_layer"):
        Recipe.model_validate({"model": {"n_layer": 2}})
    with pytest.raises(ValidationError, match="not a multiple of n_heads"):
        Recipe.model_validate({"model": {"d_model": 130}})


def test_only_what_never_changes_the_result_is_left_out_of_the_identity():
    """A new field must be put on one side on purpose."""
    how = {f.name for f in fields(TrainConfig) if f.metadata.get("identity") is False}
    assert how == {"micro_batch_size", "checkpoint_every", "activation_checkpointing"}
    assert not [f.name for f in fields(ModelConfig) if f.metadata.get("identity") is False]


def test_a_cpu_takes_rows_a_few_at_a_time_and_a_gpu_all_at_once_unless_the_recipe_says():
    config = TrainConfig()
    assert [config.rows_at_once(32, length, "cpu") for length in (128, 512, 2048, 4096)] == [16, 4, 1, 1]
    assert [config.rows_at_once(32, length, "cpu", 2) for length in (128, 512, 2048, 4096)] == [32, 8, 2, 1]
    assert config.rows_at_once(3, 128, "cpu") == 3 and config.rows_at_once(32, 512, "cuda") == 32
    given = TrainConfig(micro_batch_size=8)
    assert [given.rows_at_once(rows, 4096, device) for rows in (4, 32) for device in ("cpu", "cuda")] == [4, 4, 8, 8]


def test_a_tokenizer_sets_the_vocabulary_or_must_fit_it():
    assert ModelConfig().with_vocabulary(300).vocab_size == 300
    assert ModelConfig(vocab_size=512).with_vocabulary(300).vocab_size == 512
    with pytest.raises(ValueError, match="smaller than the tokenizer's 300"):
        ModelConfig(vocab_size=256).with_vocabulary(300)


def test_reading_a_config_does_not_import_torch():
    code = "import sys, model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
