"""Models on disk."""

import json
import subprocess
import sys

import pytest
import torch
from small_models import SHAPES, lively, random_tokens

from model.checkpoint import load_model, save_model


def test_save_then_load_gives_the_same_bits(model, tmp_path):
    save_model(model, tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    a, b = model.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    tokens = random_tokens(2, 9)
    assert torch.equal(model(tokens)[0], loaded(tokens)[0])


def test_weights_that_don_t_fit_are_named(tmp_path):
    save_model(lively(SHAPES["llama"]), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"qk_norm": True, "d_ff": 64}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"feed_forward.down.weight: the config says \(32, 64\), the file has \(32, 96\)"
    ):
        load_model(tmp_path)


def test_an_unknown_key_is_named_with_the_nearest_right_one(tmp_path):
    save_model(lively(SHAPES["llama"]), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": 3}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"n_layer.*did you mean 'n_layers'"):
        load_model(tmp_path)


def test_loading_imports_nothing_that_only_a_compiler_needs(tmp_path):
    save_model(lively(SHAPES["gpt2"]), tmp_path)
    code = (
        f"import sys; from model.checkpoint import load_model; load_model({str(tmp_path)!r}); "
        "print([m for m in ('torch._dynamo', 'sympy', 'torch.fx.experimental.symbolic_shapes') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout == "[]\n", done.stderr
