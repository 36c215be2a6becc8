"""Every architecture against `transformers`: what goes in gives the same numbers, what comes out is the same bits."""

import json

import pytest
import torch
from safetensors import safe_open
from their_models import MODELS, their_gradients, their_model
from transformers import AutoModelForCausalLM

from model.checkpoint import load_model
from model.generate.decoding import Decoding
from model.generate.engine import generate
from model.interop.convert import export_model, import_model
from model.interop.family import effective, family_named, read_config
from model.objectives.next_token import Batch, next_token

TOKENS = 20


@pytest.fixture(scope="module", params=MODELS)
def folders(request, tmp_path_factory):
    """Their model, their folder, ours made of it."""
    theirs = their_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder / "theirs")
    import_model(folder / "theirs", folder / "ours")
    return theirs, folder / "theirs", folder / "ours"


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


def tensors_of(folder) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    return found


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def test_logits_and_gradients_equal(folders):
    theirs, _, folder = folders
    ours = load_model(folder)
    tokens, targets = random_tokens(3, TOKENS), random_tokens(3, TOKENS, seed=5)
    expected = theirs(tokens, use_cache=False).logits
    hidden, _ = ours(tokens)
    torch.testing.assert_close(ours.logits(hidden), expected, atol=1e-4, rtol=1e-4)
    theirs.zero_grad()
    torch.nn.functional.cross_entropy(expected.float().flatten(0, 1), targets.flatten()).backward()
    loss, count, _ = next_token(ours, Batch(tokens, targets, torch.arange(TOKENS).expand(3, TOKENS)))
    (loss / count).backward()
    gradients, own = their_gradients(theirs), dict(ours.named_parameters())
    compared = set()
    for pair in family_named(theirs.config.architectures[0]).weights(ours.config):
        grad = own[pair.ours].grad
        assert grad is not None, pair.ours
        for name, part in zip(pair.theirs, pair.layout.split(grad), strict=True):
            want = gradients[name]
            torch.testing.assert_close(part, want, atol=1e-3 * want.abs().max().item() + 1e-9, rtol=1e-3)
            compared.add(name)
    assert compared == gradients.keys()


def test_exported_again_every_bit_and_key_is_the_same(folders, tmp_path):
    _, theirs, ours = folders
    done = export_model(ours, tmp_path, {}, {})
    same_bits(tensors_of(theirs), tensors_of(tmp_path))
    before, after = (json.loads((f / "config.json").read_text(encoding="utf-8")) for f in (theirs, tmp_path))
    assert effective(read_config(tmp_path)[1]) == effective(read_config(theirs)[1])
    derived = {"lfm2": {"intermediate_size", "block_auto_adjust_ff_dim"}}.get(before["model_type"], set())
    for key in after.keys() - derived:
        assert before.get(key) in (after[key], None), key
    assert done.parameters == sum(t.numel() for t in tensors_of(theirs).values())


def test_auto_model_loads_what_was_exported(folders, tmp_path):
    theirs, _, ours = folders
    export_model(ours, tmp_path, {"pad_token_id": 0}, {}, max_bytes=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(theirs)
    tokens = random_tokens(2, TOKENS)
    torch.testing.assert_close(again(tokens, use_cache=False).logits, theirs(tokens, use_cache=False).logits)


def test_generation_with_our_state_equals_theirs(folders):
    theirs, _, folder = folders
    ours = load_model(folder)
    prompt = random_tokens(1, 13, seed=2)
    expected = theirs.generate(prompt, max_new_tokens=10, do_sample=False)[0, 13:].tolist()
    assert generate(ours, [prompt[0].tolist()], Decoding(max_new_tokens=10, temperature=0.0))[0].tokens == expected


def test_shards_are_read(folders, tmp_path):
    theirs, _, ours = folders
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    import_model(tmp_path / "theirs", tmp_path / "ours")
    same_bits(tensors_of(ours), tensors_of(tmp_path / "ours"))


def test_half_precision_keeps_its_bits(folders, tmp_path):
    _, theirs, _ = folders
    model = AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    done = import_model(tmp_path / "theirs", tmp_path / "ours")
    assert done.dtype == "bfloat16"
    assert load_model(tmp_path / "ours").embedding.weight.dtype == torch.float32
    export_model(tmp_path / "ours", tmp_path / "again", {}, {})
    same_bits(tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
