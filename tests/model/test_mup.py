"""muP: nothing changes at the base width; elsewhere each part follows the table of model/mup.py."""

from dataclasses import replace

import pytest
import torch
from small_models import SHAPES, SMALL, random_tokens

from model import mup
from model.config import ModelConfig
from model.decoder import Decoder
from model.objectives.next_token import Batch
from model.optim.groups import make_optimizers
from model.train_config import TrainConfig
from model.trainer import train
from tests.benchmarks.mup import coordinate_check, slope, text

CONFIG = TrainConfig(steps=4, batch_size=4, seq_len=16, lr=1e-2, warmup_steps=0, checkpoint_every=0, weight_decay=0.1)


def batches(step: int) -> Batch:
    tokens = random_tokens(4, 17, seed=step)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(16).expand(4, 16))


def trained(shape: ModelConfig, config: TrainConfig = CONFIG) -> Decoder:
    model = Decoder(shape).init_weights(0)
    train(model, batches, config)
    return model


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shape", ["llama", "gqa-qk-norm", "gpt2"])
def test_at_the_base_width_training_is_the_same_bit_for_bit(shape, optimizer):
    config = replace(CONFIG, optimizer=optimizer)
    plain = SHAPES[shape]
    based = replace(plain, mup_base_width=plain.d_model, mup_base_d_head=plain.head_dim)
    for a, b in zip(trained(plain, config).parameters(), trained(based, config).parameters(), strict=True):
        assert torch.equal(a, b)


def test_hidden_matrices_start_smaller_in_wider_models_and_embeddings_do_not():
    plain = replace(SHAPES["gqa-qk-norm"], d_model=128, d_head=None)
    wide = Decoder(replace(plain, mup_base_width=32)).init_weights(0)
    for (name, p), q in zip(Decoder(plain).init_weights(0).named_parameters(), wide.parameters(), strict=True):
        factor = 0.5 if p.ndim == 2 and name not in ("embedding.weight", "head.weight") else 1.0
        torch.testing.assert_close(q.detach(), p.detach() * factor)


@pytest.mark.parametrize(
    ("mixer", "narrow"),
    [("linear_attention", "gate_up.weight"), ("rg_lru", "input_gate_weight"), ("rg_lru", "recurrent_gate_weight")],
)
def test_what_has_the_same_fan_in_at_every_width_starts_as_large_in_wider_models(mixer, narrow):
    plain = ModelConfig(**SMALL | {"d_model": 128, "n_heads": 16}, pattern=(mixer,))
    weights = [
        torch.cat([p.flatten() for n, p in Decoder(c).init_weights(0).named_parameters() if n.endswith(narrow)])
        for c in (plain, replace(plain, mup_base_width=32))
    ]
    assert torch.equal(*weights) and float(weights[0].detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_groups_of_every_shape_follow_the_table(config, optimizer):
    """Four times as wide as the base: AdamW's rate of hidden matrices is a quarter, Muon's a half.

    What decays in a step, rate * decay, is the same for all.
    """
    model = Decoder(replace(config, mup_base_width=config.d_model // 4))
    names, roles = {p: name for name, p in model.named_parameters()}, model.parameter_roles()
    for o in make_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.1)):
        for group in o.param_groups:
            for p in group["params"]:
                role = roles[names[p]]
                wide = role.kind in ("matrix", "router") and not role.narrow
                hidden = 0.5 if type(o).__name__ == "Muon" else 0.25
                assert group["lr_scale"] == (hidden if wide else 1.0), names[p]
                assert group["weight_decay"] * group["lr_scale"] in (0.0, pytest.approx(0.1))


def test_the_trainer_s_first_step_is_of_each_group_s_size():
    """AdamW's first step moves a weight by its learning rate."""
    config = replace(CONFIG, steps=1, weight_decay=0.0)
    shape = replace(SHAPES["llama"], mup_base_width=8)
    before, after = Decoder(shape).init_weights(0), trained(shape, config)
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        scale = 0.25 if a.ndim == 2 and name != "embedding.weight" else 1.0
        assert float((b - a).detach().abs().max()) == pytest.approx(config.lr * scale, rel=0.05), name


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_divided_by_the_width_s_ratio(tied):
    plain = replace(SHAPES["llama"], tie_embeddings=tied)
    models = [Decoder(replace(plain, mup_base_width=base)).init_weights(0) for base in (None, 8)]
    models[1].load_state_dict(models[0].state_dict())
    logits = [model.logits(model(random_tokens(2, 9))[0]) for model in models]
    torch.testing.assert_close(logits[1], logits[0] / 4)


def test_scores_follow_the_head_s_size_only_if_it_changes_with_the_width():
    shape = ModelConfig(**SMALL, d_head=16)
    assert mup.attention_scale(replace(shape, mup_base_width=8)) is None  # heads of one size: 1 / sqrt(16)
    grown = replace(shape, mup_base_width=8, mup_base_d_head=4)
    assert mup.attention_scale(grown) == pytest.approx(16**-0.5 * (4 / 16) ** 0.5)  # 1 / d, as 2 / 16
    models = [Decoder(s).init_weights(0) for s in (grown, replace(grown, mup_base_d_head=None, attention_scale=2 / 16))]
    hidden = [model(random_tokens(2, 9))[0] for model in models]
    torch.testing.assert_close(hidden[0], hidden[1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_after_a_few_steps_activations_keep_their_size_over_the_width(optimizer):
    """The coordinate check; a slope is the exponent by which something grows with the width."""
    data, slopes = text(0.1), {}
    for base in (None, 32):
        last = coordinate_check(data, (32, 64, 128), base, lr=2**-8, steps=5, optimizer=optimizer)[-1]
        slopes[base] = {part: slope({w: sizes[part] for w, sizes in last.items()}) for part in last[32]}
    assert slopes[None]["logits"] > 0.6, "without muP the same rate is too large for a wider model"
    assert all(-0.3 < value < 0.1 for value in slopes[32].values()), slopes[32]
