"""Rotation and stretched frequencies, against the definition and `transformers`."""

import cmath
from dataclasses import replace

import pytest
import torch
from small_models import SHAPES, lively, random_tokens
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.checkpoint import load_weights, save_model
from model.config import ModelConfig
from model.decoder import Decoder
from model.layers.rope import Rope, frequencies
from model.part_configs import RopeScaling

DIM, THETA, OLD = 64, 10_000.0, 2048
CASES = {
    "linear": (RopeScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
    "yarn": (
        RopeScaling("yarn", 8.0, OLD),
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": OLD},
    ),
    "yarn, all given": (
        RopeScaling("yarn", 3.0, 512, beta_fast=20.0, beta_slow=2.0, attention_factor=0.7),
        {
            "rope_type": "yarn",
            "factor": 3.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "attention_factor": 0.7,
        },
    ),
    "llama3": (
        RopeScaling("llama3", 8.0, OLD, low_freq_factor=1.0, high_freq_factor=4.0),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": OLD,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
}


def theirs(parameters, dim=DIM, theta=THETA, seq_len=None):
    config = LlamaConfig(
        hidden_size=4 * dim,
        num_attention_heads=4,
        max_position_embeddings=int(OLD * parameters["factor"]),
        rope_parameters={"rope_theta": theta, **parameters},
    )
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len)


@pytest.mark.parametrize(("dim", "theta"), [(DIM, THETA), (96, 500_000.0)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_scaled_frequencies_equal_transformers(case, dim, theta):
    scaling, parameters = case
    expected, expected_factor = theirs(parameters, dim, theta)
    given, factor = frequencies(dim, theta, scaling)
    torch.testing.assert_close(torch.tensor(given), expected, rtol=3e-6, atol=0)
    assert factor == pytest.approx(expected_factor)
    unscaled, _ = frequencies(dim, theta, None)
    assert not torch.allclose(torch.tensor(given), torch.tensor(unscaled)), "the case scales nothing"


def test_ntk_frequencies_equal_transformers_dynamic_ntk_at_the_new_length():
    """Dynamic NTK grows theta with the text; at (4 + 3 - 1) / 3 times the old length by ours of factor 4."""
    parameters = {"rope_type": "dynamic", "factor": 3.0}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=OLD,
        rope_parameters={"rope_theta": THETA, **parameters},
    )
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", OLD * 2)
    given, factor = frequencies(DIM, THETA, RopeScaling("ntk", 4.0))
    torch.testing.assert_close(torch.tensor(given), expected, rtol=3e-6, atol=0)
    assert factor == 1.0
    plain = frequencies(DIM, THETA, None)[0]
    assert given[0] == plain[0] and given[-1] == pytest.approx(plain[-1] / 4)


@pytest.mark.parametrize("scaling", [None, *(case[0] for case in CASES.values())])
def test_the_first_channels_are_turned_by_their_position_and_the_others_left_alone(scaling):
    x = torch.randn(2, 5, 3, 12, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 300]])
    f, factor = frequencies(8, THETA, scaling)
    turned = Rope(8, THETA, scaling).rotate(x, positions, longest=301)
    for b in range(2):
        for t in range(5):
            for i in range(4):
                number = torch.view_as_complex(x[b, t, :, 2 * i : 2 * i + 2])
                expected = number * factor * cmath.exp(1j * f[i] * positions[b, t].item())
                given = torch.view_as_complex(turned[b, t, :, 2 * i : 2 * i + 2].contiguous())
                torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    rope = Rope(8, THETA, scaling)
    assert torch.equal(rope.rotate(x), rope.rotate(x, torch.arange(5).expand(2, 5), longest=5))


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(1))
    rope = Rope(16, THETA, RopeScaling("yarn", 4.0, 32))

    def score(m: int, n: int) -> float:
        turned = (rope.rotate(x, torch.tensor([[at]]), 5000) for x, at in ((q, m), (k, n)))
        a, b = turned
        return float((a * b).sum())

    assert score(40, 33) == pytest.approx(score(4007, 4000), abs=1e-4)
    assert abs(score(40, 33) - score(40, 34)) > 1e-3


def test_a_trained_model_s_weights_go_on_in_a_longer_context(tmp_path):
    """All that changes is `rope_scaling` and `max_seq_len`; tokens four times as far apart look as they did before."""
    trained = lively(SHAPES["llama"])
    save_model(trained, tmp_path)
    longer = Decoder(replace(trained.config, max_seq_len=256, rope_scaling=RopeScaling("linear", 4.0, 64)))
    load_weights(longer, tmp_path)
    tokens = random_tokens(1, 64)
    assert not torch.allclose(longer(tokens)[0], trained(tokens)[0], atol=0.1)
    for block in longer.blocks:
        block.mixer.rope._tables[torch.device("cpu")] = block.mixer.rope.table(256, torch.device("cpu"))[::4]
    torch.testing.assert_close(longer(tokens)[0], trained(tokens)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "yarm"}, "did you mean 'yarn'"),
        ({"factor": 0.5}, "rope_scaling.factor = 0.5 is too small"),
        ({"beta_fast": 1.0, "beta_slow": 2.0}, "beta_slow = 2.0 must be less than beta_fast = 1.0"),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(rope_scaling=settings)
