"""A family of Hugging Face models, and which one a config of either kind belongs to.

Whether a family can hold one of our models is not written down anywhere: the config is written as theirs, read back,
and compared. A field that comes back different, and that has any effect in this model, is one that doesn't fit.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from model import mup
from model.config import ModelConfig
from model.errors import Missing, UserError
from model.files import given, read_json
from model.interop.keys import Declaration, Ours, Theirs, Unsupported, value
from model.interop.rope import ntk_theta
from model.interop.weights import Pair

MODULES = ("llama", "qwen", "gpt2", "mixtral", "olmo2", "gemma", "mamba2", "lfm2", "recurrent_gemma", "bamba")
ANYWHERE = (  # keys of every config that change what a model computes
    ("quantization_config", None, "weights that are not quantized"),
    ("add_cross_attention", False, "decoders without an encoder"),
)


@dataclass(frozen=True)
class Family:
    """One architecture of `transformers`.

    weights: our tensors and theirs, for a config.
    prefix: of their names; files of the bare model, without its head, lack it.
    ignored: the last parts of names of tensors that hold no weights, such as masks.
    """

    architecture: str
    model_type: str
    config: tuple[Declaration, ...]
    weights: Callable[[ModelConfig], Iterable[Pair]]
    prefix: str = "model."
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)

    def read(self, theirs: Theirs) -> ModelConfig:
        """Raises Unsupported for what can't be expressed here."""
        for key, allowed, supported in ANYWHERE:
            if theirs.get(key, allowed) not in (None, allowed):
                raise Unsupported.key(key, theirs[key], f"supported are {supported}")
        ours: Ours = {}
        for declaration in self.config:
            try:
                ours |= declaration.read(theirs)
            except KeyError as missing:
                raise Unsupported(f"config.json has no key {missing}, which {self.architecture} needs.") from None
        parts: dict[str, dict[str, Any]] = {}
        for name in [name for name in ours if "." in name]:
            part, field = name.split(".")
            parts.setdefault(part, {})[field] = ours.pop(name)
        plain = ModelConfig()
        return replace(plain, **ours, **{part: replace(getattr(plain, part), **f) for part, f in parts.items()})

    def write(self, config: ModelConfig) -> Theirs:
        theirs: Theirs = {"architectures": [self.architecture], "model_type": self.model_type}
        for declaration in self.config:
            theirs |= declaration.write(config)
        return theirs

    def misfits(self, config: ModelConfig) -> list[str]:
        """What of a model of ours this family can't hold: 'field = value', or the family's own refusal."""
        return self.compare(config)[1]

    def compare(self, config: ModelConfig) -> tuple[bool, list[str]]:
        """(whether the family refuses the config as a whole, its misfits)"""
        try:
            back = effective(self.read(self.write(config)))
        except ValueError as error:
            return True, [str(error)]
        wanted = effective(config)
        differ = [name for name in wanted if not _equal(wanted[name], back.get(name))]
        return False, [f"{name} = {wanted[name]!r}" for name in differ] + [f"no {n}" for n in back if n not in wanted]


def effective(config: ModelConfig) -> dict[str, Any]:
    """All that has an effect in a model of this config, with what follows from other fields filled in."""
    mixers, feed_forwards = set(config.layer_mixers), set(config.layer_feed_forwards)
    attends = bool(mixers & {"attention", "window", "linear_attention", "h3"})
    plain = ("vocab_size", "d_model", "n_layers", "norm", "norm_eps", "norm_position", "max_seq_len", "tie_embeddings")
    found = {name: getattr(config, name) for name in (*plain, "embedding_scale", "causal", "logit_softcap")}
    found |= {"pattern": config.layer_mixers, "ff_pattern": config.layer_feed_forwards}
    found["position"] = config.position if attends or config.position == "learned" else "none"
    if config.norm == "layernorm":
        found["bias"] = config.bias
    if attends:
        names = ("n_heads", "n_kv_heads", "d_head", "qkv_bias", "out_bias", "qk_norm")
        found |= {name: value(config, name) for name in names}
        found["attention_scale"] = mup.attention_scale(config)
        if config.qk_norm:
            found["qk_norm_over"] = config.qk_norm_over
        if config.position == "rope":
            found["rope_fraction"] = config.rope_fraction
    if config.position == "rope" and mixers & {"attention", "window"}:
        scaling, theta = config.rope_scaling, config.rope_theta
        if scaling is not None and scaling.kind == "ntk":
            scaling, theta = None, ntk_theta(config)
        if "attention" in mixers or config.rope_theta_local is None:
            found |= {"rope_theta": theta, "rope_scaling": _scaling(scaling)}
        if "window" in mixers:
            found["rope_theta_local"] = config.rope_theta_local or theta
    if "window" in mixers:
        found |= {"window": config.window, "global_tokens": config.global_tokens}
    if feed_forwards & {"dense", "moe"}:
        found["feed_forward"] = config.feed_forward
    if "dense" in feed_forwards:
        found |= {"d_ff": config.ff_width, "ff_bias": value(config, "ff_bias")}
    if "moe" in feed_forwards:
        for name in ("n_experts", "top_k", "n_shared", "normalise"):
            found[f"moe.{name}"] = getattr(config.moe, name)
        found["moe.d_ff"] = config.expert_width
        if config.moe.balance == "bias":
            found["moe.balance"] = "bias"
    if mixers <= {"mamba2", "rg_lru", "window", "short_conv"} and config.position != "learned":
        del found["max_seq_len"]  # nothing grows with the context
    for part in ("mamba2", "h3", "rg_lru", "short_conv"):
        if part in mixers:
            found |= {f"{part}.{n}": v for n, v in asdict(getattr(config, part)).items() if n != "chunk"}
            found |= {"bias": config.bias, "out_bias": value(config, "out_bias")}
    if "short_conv" in mixers:
        own = config.short_conv.bias
        found["short_conv.bias"] = config.bias if own is None else own
        found["short_conv.out_bias"] = value(config, "out_bias") if own is None else own
    if "rg_lru" in mixers:
        found["rg_lru.width"] = config.rg_lru.width or config.d_model
        found["rg_lru.n_blocks"] = config.rg_lru.n_blocks or config.n_heads
    if mup.output_scale(config) != 1:
        found["mup_base_width"] = config.mup_base_width
    return found


def _scaling(scaling: Any) -> dict[str, Any] | None:
    """What of a scaling has an effect."""
    if scaling is None:
        return None
    names = {
        "linear": (),
        "llama3": ("original_max_len", "low_freq_factor", "high_freq_factor"),
        "yarn": ("original_max_len", "beta_fast", "beta_slow", "attention_factor"),
    }
    return {name: getattr(scaling, name) for name in ("kind", "factor", *names[scaling.kind])}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-9 * abs(one)
    return one == other


def families() -> list[Family]:
    """All that are known, the more usual first: a model of ours is written as the first that can hold it."""
    return [family for name in MODULES for family in import_module(f"model.interop.{name}").FAMILIES]


def family_named(name: str) -> Family:
    """By architecture or model_type. Raises Unsupported with those that are known."""
    known = families()
    for family in known:
        if name in (family.architecture, family.model_type):
            return family
    raise Unsupported(f"The architecture {name!r} is not known. Known are {', '.join(f.architecture for f in known)}.")


def read_config(folder: Path) -> tuple[Family, ModelConfig, Theirs]:
    """A Hugging Face folder's family and its config as ours and as theirs; no weight is read.

    Raises:
        LookupError: no config.json there, or one that isn't a Hugging Face model's.
        Unsupported: the architecture, or a key's value, has no counterpart here.
    """
    path = folder / "config.json"
    if not given(path):
        raise Missing(f"{folder} has no config.json: it isn't a Hugging Face model's folder.")
    theirs = read_json(path)
    listed = theirs.get("architectures") or []
    named = [*(listed if isinstance(listed, list) else [listed]), theirs.get("model_type")]
    if "d_model" in theirs and "ff_pattern" in theirs:
        raise Missing(f"{folder} is a tokenmill model already: use it as it is.")
    if not named[0] or not isinstance(named[0], str):
        raise Missing(f"{path} names neither architectures nor a model_type: it isn't a Hugging Face model's.")
    family = family_named(named[0])
    try:
        return family, family.read(theirs), theirs
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        if isinstance(error, UserError):
            where = folder if "config.json" in str(error) else path
            raise type(error)(f"{where}: {error}") from None
        raise Unsupported(f"{path} has a value of another kind than {family.architecture} has: {error}.") from error


def choose_family(config: ModelConfig, wanted: str | None = None) -> Family:
    """The family to write a model of ours as: `wanted`, or the first that can hold it.

    Raises:
        Unsupported: none can; says what doesn't fit into the nearest.
    """
    if wanted is not None:
        family = family_named(wanted)
        misfits = family.misfits(config)
        if misfits:
            raise Unsupported(f"{family.architecture} can't hold this model: {'; '.join(misfits)}.")
        return family
    tried = [(*family.compare(config), family) for family in families()]
    _, nearest, family = min(tried, key=lambda t: (t[0], len(t[1])))
    if not nearest:
        return family
    raise Unsupported(
        f"No known architecture can hold this model. The nearest is {family.architecture}, "
        f"where this doesn't fit: {'; '.join(nearest)}."
    )
