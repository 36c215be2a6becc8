"""What can't be expressed is refused by name, before any weight is read: these folders have none."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SHAPES, lively
from their_models import SIZES, rope, their_model

from model.checkpoint import load_config, load_model, save_model
from model.interop.convert import export_model, import_model
from model.interop.family import choose_family, effective, families, family_named, read_config
from model.interop.keys import Unsupported
from model.part_configs import RopeScaling

REFUSED = [
    ("LlamaForCausalLM", {"hidden_act": "relu"}, "hidden_act = 'relu'.*supported is 'silu'"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'.*llama3"),
    ("LlamaForCausalLM", {"rope_parameters": rope(kind="longrope", factor=2.0)}, "rope_type = 'longrope'"),
    ("LlamaForCausalLM", {"quantization_config": {"bits": 4}}, "quantization_config.*not quantized"),
    ("GPT2LMHeadModel", {"activation_function": "gelu"}, "activation_function = 'gelu'.*tanh"),
    ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ("Gemma2ForCausalLM", {}, "attn_logit_softcapping = 50.0"),
    ("Gemma2ForCausalLM", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping = 30.0.*no soft-cap of attention"),
    ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("Gemma3ForCausalLM", {"layer_types": ["full_attention", "chunked", "conv"]}, r"layer_types\[1\] = 'chunked'"),
    ("Qwen2ForCausalLM", {"layer_types": ["sliding_attention"] * 3}, "sliding_window = None"),
    ("Mamba2ForCausalLM", {"expand": 3}, "num_heads = 128"),
    ("Mamba2ForCausalLM", {"hidden_size": 4096, "time_step_limit": [0.0, 0.1]}, "time_step_limit"),
    ("Mamba2ForCausalLM", {"hidden_size": 4096, "rms_norm": False}, "rms_norm = False"),
    ("BambaForCausalLM", {"mamba_n_heads": 4, "mamba_proj_bias": True}, "mamba_proj_bias = True"),
    ("RecurrentGemmaForCausalLM", {"block_types": ["mamba"]}, r"block_types\[0\] = 'mamba'.*recurrent, attention"),
    (
        "LlamaForCausalLM",
        {"rope_parameters": rope(kind="linear", factor=2.0), "partial_rotary_factor": 0.5},
        "partial_rotary_factor = 0.5.*whole heads",
    ),
    ("BertForMaskedLM", {}, "'BertForMaskedLM' is not known. Known are LlamaForCausalLM, .*Mamba2ForCausalLM"),
]


@pytest.mark.parametrize(("architecture", "keys", "message"), REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(architecture, keys, message, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({**SIZES, "architectures": [architecture], **keys}), encoding="utf-8"
    )
    with pytest.raises(Unsupported, match=message):
        import_model(tmp_path, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(LookupError, match=r"no config\.json"):
        import_model(tmp_path, tmp_path / "ours")
    save_model(lively(SHAPES["llama"]), tmp_path)
    with pytest.raises(LookupError, match="tokenmill model already"):
        import_model(tmp_path, tmp_path / "ours")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LookupError, match="names neither"):
        import_model(tmp_path, tmp_path / "ours")


@pytest.fixture
def llama(tmp_path):
    their_model("llama-tied").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_weights_that_do_not_fit_their_config_are_refused(llama, tmp_path):
    weights = load_file(llama / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    for changed, message in (
        ({n: w for n, w in weights.items() if n != name}, f"lacks 1 weights.*{name}"),
        (weights | {"model.layers.1.extra.weight": torch.ones(2)}, r"has 1 weights.*model\.layers\.1\.extra"),
        (weights | {name: torch.ones(24, 32)}, r"k_proj.weight is \(24, 32\)"),
        (weights | {name: weights[name].half()}, "different dtypes"),
    ):
        save_file(changed, llama / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            import_model(llama, tmp_path / "ours")
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(LookupError, match="pickles"):
        import_model(llama, tmp_path / "ours")


def test_tied_weights_stay_tied(llama, tmp_path):
    weights = load_file(llama / "model.safetensors")
    assert "lm_head.weight" not in weights
    copy = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": copy}, llama / "model.safetensors", {"format": "pt"})
    import_model(llama, tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    assert ours.head is None
    export_model(tmp_path / "ours", tmp_path / "again", {}, {})
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == weights.keys()
    save_file(weights | {"lm_head.weight": copy + 1}, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        import_model(llama, tmp_path / "other")


def test_a_file_of_the_bare_model_lacks_the_prefix(tmp_path):
    their_model("gpt2").save_pretrained(tmp_path / "gpt2")
    path = tmp_path / "gpt2" / "model.safetensors"
    bare = {n.removeprefix("transformer."): w for n, w in load_file(path).items()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.1.attn.masked_bias": torch.ones(())}
    import_model(tmp_path / "gpt2", tmp_path / "one")
    save_file(bare | masks, path, {"format": "pt"})
    import_model(tmp_path / "gpt2", tmp_path / "other")
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "other"))
    assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 500.0}, {"rope_parameters": rope(500.0)}),
        (
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": rope(500.0, "linear", factor=2.0)},
        ),
        (
            {
                "rope_theta": 9.0,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            },
            {"rope_parameters": rope(9.0, "yarn", factor=4.0, original_max_position_embeddings=32)},
        ),
    ],
)
def test_older_config_files_say_the_same(old, new):
    family = family_named("llama")
    assert family.read(SIZES | old) == family.read(SIZES | new)


SMALL = SHAPES["llama"]
OURS = [
    (SMALL, "LlamaForCausalLM"),
    (SHAPES["gqa-qk-norm"], "Qwen3ForCausalLM"),
    (SHAPES["gpt2"], "GPT2LMHeadModel"),
    (replace(SMALL, pattern=("window",), window=8), "MistralForCausalLM"),
    (replace(SMALL, ff_pattern=("moe",)), "MixtralForCausalLM"),
    (replace(SMALL, ff_pattern=("dense", "moe"), qk_norm=True), "Qwen3MoeForCausalLM"),
    (replace(SMALL, rope_scaling=RopeScaling("ntk", 4.0)), "LlamaForCausalLM"),
    (replace(SMALL, pattern=("short_conv", "attention"), qk_norm=True), "Lfm2ForCausalLM"),
    (replace(SMALL, pattern=("mamba2", "attention"), rope_fraction=0.5), "BambaForCausalLM"),
    (replace(SMALL, pattern=("mamba2", "attention")), "BambaForCausalLM"),
    (replace(SMALL, rope_fraction=0.5), "BambaForCausalLM"),  # of attention alone
    (replace(SMALL, pattern=("mamba2",), ff_pattern=("none",)), "Mamba2ForCausalLM"),
]


@pytest.mark.parametrize(("config", "architecture"), OURS)
def test_a_model_trained_here_is_exported_to_the_family_that_can_hold_it(config, architecture, tmp_path):
    from transformers import AutoModelForCausalLM

    ours = lively(config)
    save_model(ours, tmp_path / "ours")
    assert export_model(tmp_path / "ours", tmp_path / "theirs", {}, {}).architecture == architecture
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    tokens = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    hidden, _ = ours(tokens)
    torch.testing.assert_close(ours.logits(hidden), theirs(tokens, use_cache=False).logits, atol=1e-4, rtol=1e-4)
    back = import_model(tmp_path / "theirs", tmp_path / "back")
    assert back.architecture == architecture
    same = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(same[n], w) for n, w in load_file(tmp_path / "ours" / "model.safetensors").items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"feed_forward": "relu2"}, "feed_forward = 'relu2'"),
        ({"qk_norm": True, "norm_position": "sandwich", "feed_forward": "relu2"}, "feed_forward = 'relu2'"),
        ({"position": "none"}, "position = 'none'"),
        ({"pattern": ("window",), "global_tokens": 2}, "global_tokens = 2"),
        ({"causal": False}, "causal = False"),
        ({"logit_softcap": 9.0}, "logit_softcap = 9.0"),
        ({"rope_fraction": 0.5, "qk_norm": True}, "rope_fraction = 0.5"),
    ],
)
def test_a_model_that_no_family_can_hold_is_told_why(changes, named):
    with pytest.raises(Unsupported, match=f"nearest is .*{named}"):
        choose_family(replace(SMALL, **changes))


def test_heads_are_turned_whole_where_transformers_never_reads_the_share(tmp_path):
    from transformers import AutoModelForCausalLM

    their_model("llama-tied").save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "theirs" / "config.json").write_text(
        json.dumps(config | {"partial_rotary_factor": 0.5}), encoding="utf-8"
    )
    import_model(tmp_path / "theirs", tmp_path / "ours")
    ours, theirs = load_model(tmp_path / "ours"), AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    assert ours.config.rope_fraction == 1
    tokens = torch.randint(0, ours.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.logits(ours(tokens)[0]), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_family_asked_for_must_be_able_to_hold_the_model():
    assert choose_family(SMALL, "mistral").architecture == "MistralForCausalLM"
    with pytest.raises(Unsupported, match=r"GPT2LMHeadModel can't hold this model: .*norm = 'rmsnorm'"):
        choose_family(SMALL, "GPT2LMHeadModel")


def test_a_model_goes_back_to_the_family_it_came_from(tmp_path):
    """Mistral without a window is a Llama; and fits no longer once it is another model."""
    their_model("mistral-full").save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    assert export_model(tmp_path / "ours", tmp_path / "again", {}, {}).architecture == "MistralForCausalLM"
    assert read_config(tmp_path / "again")[1] == load_config(tmp_path / "ours")
    trained = load_model(tmp_path / "ours")
    save_model(trained, tmp_path / "trained")
    assert export_model(tmp_path / "trained", tmp_path / "new", {}, {}).architecture == "LlamaForCausalLM"


def test_the_defaults_are_those_of_transformers():
    """A config.json may leave out what its config class takes by default."""
    import transformers as t
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for family in families():
        config = CONFIG_MAPPING[family.model_type]()
        full = json.loads(config.to_json_string(use_diff=False))
        if family.model_type == "gemma2":
            full["attn_logit_softcapping"] = None
        needed = {"hidden_size", "num_hidden_layers", "attn_logit_softcapping", "block_types"}
        bare = {key: full[key] for key in needed if key in full}
        assert effective(family.read(bare)) == effective(family.read(full)), family.architecture
        assert getattr(t, family.architecture)
