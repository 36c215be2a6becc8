"""GGUF files, read back by the library, by `transformers` and by ourselves."""

import json
from dataclasses import asdict

import pytest
import torch

from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.interop.gguf import export_gguf, import_gguf
from model.checkpoint import load_config, load_model, save_model
from model.config import ModelConfig
from model.decoder import Decoder
from model.part_configs import MoeConfig
from model.quantize.calibrate import quantize
from tests.cluster.tiny_model import TEXT, make_model

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose widths are whole blocks of 32, with grouped keys and a head of its own."""
    folder = make_model(tmp_path_factory.mktemp("ours"))
    config = ModelConfig(360, 64, 2, 4, n_kv_heads=2, d_head=32, d_ff=96, tie_embeddings=False, max_seq_len=64)
    model = Decoder(config).init_weights(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    save_model(model, folder)
    return folder


def shaped(folder, target, values):
    """Another model with the same tokenizer."""
    model = Decoder(ModelConfig.from_dict(json.loads(json.dumps(values, default=asdict)))).init_weights(1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_model(model, target)
    for name in ("tokenizer.model", "tokenizer.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def test_a_quantized_model_is_written_as_the_numbers_that_it_stands_for(folder, tmp_path):
    model = load_model(folder)
    quantize(model, "int4", group_size=32)
    save_model(model, tmp_path / "int4")
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / "int4" / name).write_bytes((folder / name).read_bytes())
    export_gguf(tmp_path / "int4", tmp_path / "m.gguf", "f32")
    import_gguf(tmp_path / "m.gguf", tmp_path / "back")
    torch.testing.assert_close(logits(tmp_path / "back"), logits(tmp_path / "int4"), atol=0.2, rtol=0.05)


def tokens() -> torch.Tensor:
    return torch.randint(8, 360, (2, 20), generator=torch.Generator().manual_seed(0))


def logits(folder) -> torch.Tensor:
    model = load_model(folder)
    with torch.no_grad():
        return model.logits(model(tokens())[0])


@pytest.mark.parametrize(
    ("precision", "near"), [("f32", 0.0), ("f16", 1e-2), ("q8_0", 0.2), ("q5_0", 1.6), ("q4_0", 3.2)]
)
def test_a_file_is_read_back(folder, precision, near, tmp_path):
    size = export_gguf(folder, tmp_path / "m.gguf", precision)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert size == (tmp_path / "m.gguf").stat().st_size
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == precision.upper() and kinds["output_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == ("Q8_0" if precision in ("q4_0", "q5_0") else precision.upper())
    done = import_gguf(tmp_path / "m.gguf", tmp_path / "back")
    assert done.parameters == sum(p.numel() for p in load_model(folder).parameters())
    torch.testing.assert_close(logits(tmp_path / "back"), logits(folder), atol=near, rtol=0)
    ours, back = Tokenizer(folder), Tokenizer(tmp_path / "back")
    assert back.info == ours.info
    assert all(back.encode(text) == ours.encode(text) for text in [*TEXT, "  é🙂\n\n\u2581 x"])


SHAPES = {
    "llama": {},
    "qwen3": {"qk_norm": True, "d_head": 128},  # of which its reader there takes the default, as of an expert's width
    "qwen2": {"qkv_bias": True, "out_bias": False, "ff_bias": False, "d_head": 16},
    "qwen3moe": {"qk_norm": True, "ff_pattern": ("moe",), "moe": MoeConfig(n_experts=4, top_k=2, d_ff=768)},
}


@pytest.mark.parametrize("architecture", SHAPES)
def test_transformers_gives_the_same_logits(architecture, folder, tmp_path):
    from transformers import AutoModelForCausalLM

    if SHAPES[architecture]:
        base = asdict(load_config(folder)) | dict.fromkeys(("rope_scaling",))
        folder = shaped(folder, tmp_path / "ours", base | SHAPES[architecture])
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["general.architecture"].contents() == architecture
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    torch.testing.assert_close(theirs(tokens()).logits.detach(), logits(folder), atol=1e-4, rtol=1e-4)


def test_what_has_no_place_in_a_file_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("tokenizer.model", "tokenizer.json", "model.safetensors"):
        (other / name).write_bytes((folder / name).read_bytes())
    for changes, message in (
        ({"qk_norm": True, "feed_forward": "geglu"}, "nearest is qwen3; .*feed_forward = 'geglu'"),
        ({"qkv_bias": True, "ff_bias": True}, "ff_bias"),
        ({"pattern": ["window", "attention"]}, "see a window"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2.0}}, "yarn"),
    ):
        (other / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            export_gguf(other, tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="f32, f16, q8_0, q5_0, q4_0"):
        export_gguf(folder, tmp_path / "x.gguf", "q2")
    assert list(tmp_path.glob("*.gguf*")) == []
    assert load_config(folder).qk_norm is False
