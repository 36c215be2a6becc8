"""A Hugging Face folder to a model of ours and back: config and weights; the tokenizer is cluster/'s.

    read:   config.json -> is it expressible? -> names and shapes of all tensors fit? -> weights, one after another
    write:  the family that can hold it -> config.json, weights, one after another

No weight is computed with: a bfloat16 is the same bfloat16 afterwards. Our file keeps their dtypes, and the model that
is loaded from it computes in float32, into which bfloat16 and float16 go without a loss.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import CONFIG, load_config
from model.config import ModelConfig
from model.count import meta_model
from model.errors import UserError
from model.files import named
from model.interop.family import Family, choose_family, read_config
from model.interop.folder import Weights, count_tensors, write_weights
from model.interop.weights import Pair
from model.sizes import check_sizes

HEAD = "lm_head.weight"
ARCHITECTURE = "huggingface"  # in our file's metadata: where it came from, so that it goes back there


@dataclass(frozen=True)
class Converted:
    """What was read or written."""

    architecture: str
    config: ModelConfig
    parameters: int
    dtype: str  # of most of the values
    files: int


def import_model(source: Path, target: Path) -> Converted:
    """Write `target`/model.safetensors and config.json from a Hugging Face folder.

    Raises:
        LookupError: `source` isn't such a folder, or a file of it is missing.
        Unsupported: the model can't be expressed here, for this reason; no weight has been read.
        ValueError: the weights don't fit config.json.
    """
    family, config = believable(source)
    with Weights(source) as weights:
        with named(source / CONFIG):
            pairs = pairs_of(family, config, weights)
            names = their_names(family, pairs, weights.names())
            check(family, config, pairs, weights, names)
        target.mkdir(parents=True, exist_ok=True)
        tensors = ((p.ours, p.layout.join([weights[names[n]] for n in p.theirs])) for p in pairs)
        about = {"format": "pt", ARCHITECTURE: family.architecture}
        counted = Counted(tensors)
        write_weights(target, counted, 1 << 62, about)
    (target / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    return Converted(family.architecture, config, counted.parameters, counted.dtype, 1)


def believable(source: Path) -> tuple[Family, ModelConfig]:
    """A folder's family and config, of sizes that its weights can have (sizes.py); raises as `import_model`."""
    family, config, _ = read_config(source, count_tensors(source))
    with Weights(source) as weights:
        try:
            check_sizes(config, len(weights.names()), weights.size)
        except UserError as error:
            raise UserError(f"{source / CONFIG} {error}.") from None
    return family, config


def export_model(
    source: Path,
    target: Path,
    ids: dict[str, Any],
    generation: dict[str, Any],
    architecture: str | None = None,
    max_bytes: int = 5 * 10**9,
) -> Converted:
    """Write `target`/config.json, generation_config.json and the weights of a folder of ours.

    Args:
        ids: bos_token_id, eos_token_id, … as config.json shall have them.
        generation: all of generation_config.json.
        architecture: the family to write; default: the one it was imported from if it still fits, else the first
            that can hold the model.
        max_bytes: of one file of weights.

    Raises:
        Unsupported: no family, or not this one, can hold the model; says which fields don't fit.
    """
    config = load_config(source)
    with Weights(source) as weights:
        with named(source / CONFIG):
            family = _family(config, architecture, weights.metadata.get(ARCHITECTURE))
        pairs = list(family.weights(config))
        expected = set(meta_model(config).state_dict())
        if expected != {p.ours for p in pairs} or expected != set(weights.names()):
            odd = sorted(expected ^ {p.ours for p in pairs} | expected ^ set(weights.names()))
            raise UserError(f"{source}: {', '.join(odd[:5])} has no place in {family.architecture}.")
        target.mkdir(parents=True, exist_ok=True)
        counted = Counted(item for p in pairs for item in zip(p.theirs, p.layout.split(weights[p.ours]), strict=True))
        files = write_weights(target, counted, max_bytes, {"format": "pt"})
    theirs = family.write(config) | ids | {"dtype": counted.dtype}
    (target / CONFIG).write_text(json.dumps(theirs, indent=2) + "\n", encoding="utf-8")
    (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return Converted(family.architecture, config, counted.parameters, counted.dtype, files)


def _family(config: ModelConfig, wanted: str | None, origin: str | None) -> Family:
    if wanted is None and origin is not None:
        try:
            return choose_family(config, origin)
        except ValueError:
            pass
    return choose_family(config, wanted)


def pairs_of(family: Family, config: ModelConfig, weights: Weights) -> list[Pair]:
    """What the config implies. Raises UserError as soon as that is far more than the file has."""
    pairs, implied, there = [], 0, len(weights.names())
    for pair in family.weights(config):
        pairs.append(pair)
        implied += len(pair.theirs)
        if implied > 4 * there + 100:
            raise UserError(f"{weights.folder} has {there} tensors, but its config.json implies over {implied}.")
    return pairs


def their_names(family: Family, pairs: list[Pair], given: list[str]) -> dict[str, str]:
    """The names of theirs that we know -> those in the file, which lack the prefix if it is the bare model's."""
    known, there = [n for p in pairs for n in p.theirs], set(given)
    bare = known[0] not in there and known[0].removeprefix(family.prefix) in there
    return {n: n.removeprefix(family.prefix) if bare else n for n in known}


def check(family: Family, config: ModelConfig, pairs: list[Pair], weights: Weights, names: dict[str, str]) -> None:
    """ValueError unless the file holds just the tensors that its config says, by names and shapes alone."""
    there = set(weights.names())
    missing = [n for n in names.values() if n not in there]
    if missing:
        raise UserError(
            f"{weights.folder} lacks {len(missing)} weights that its config.json implies, e.g. {missing[0]}."
        )
    tied = {HEAD} & there if config.tie_embeddings else set()
    left = sorted(n for n in there - set(names.values()) - tied if not n.endswith(family.ignored))
    if left:
        raise UserError(
            f"{weights.folder} has {len(left)} weights that {family.architecture} hasn't with this config.json, "
            f"e.g. {left[0]}."
        )
    try:
        expected = {n: tuple(t.shape) for n, t in meta_model(config).state_dict().items()}
    except UserError as error:
        raise UserError(f"{weights.folder / CONFIG}: {error}.") from None
    for pair in pairs:
        parts = [weights.meta(names[n]) for n in pair.theirs]
        try:
            shape = tuple(pair.layout.join(parts).shape)
            back = [tuple(t.shape) for t in pair.layout.split(parts[0].new_empty(expected[pair.ours]))]
        except (RuntimeError, ValueError) as error:
            shape, back = (), [str(error)]
        if shape != expected[pair.ours] or back != [tuple(t.shape) for t in parts]:
            shapes = ", ".join(f"{n} is {tuple(t.shape)}" for n, t in zip(pair.theirs, parts, strict=True))
            raise UserError(f"{weights.folder}: {shapes[:300]}, but config.json implies {back}.")
        if len({t.dtype for t in parts}) > 1:
            raise UserError(f"{weights.folder}: {', '.join(pair.theirs[:3])} have different dtypes.")
    embedding = next(p for p in pairs if p.ours == "embedding.weight").theirs[0]
    if tied and not torch.equal(weights[HEAD], weights[names[embedding]]):
        raise UserError(
            f"{weights.folder}: config.json says that head and embedding are tied (tie_word_embeddings), but "
            f"{HEAD} is another matrix than {embedding}."
        )


class Counted:
    """Passes tensors on, and counts what passes."""

    def __init__(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        self._tensors = tensors
        self._sizes: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._tensors:
            self._sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
            yield name, tensor

    @property
    def parameters(self) -> int:
        return self._sizes.total()

    @property
    def dtype(self) -> str:
        return self._sizes.most_common(1)[0][0]
