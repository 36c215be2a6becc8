"""`[model] preset = "10M"`: one key that stands for a model's sizes (model/presets.py).

It is written out before a recipe is validated, so that what comes after sees plain keys. Keys beside it in the same
file, and those of files and `--set`s above it, win over the preset's; those of files below it don't. Each key that it
set says where the preset was written.
"""

from __future__ import annotations

from cluster.errors import UserError
from flows.recipe_errors import Problem, RecipeError, given
from flows.recipe_toml import Layers, Origin
from model.presets import preset

LOC = ("model", "preset")


def write_out(layers: Layers) -> None:
    """Replaces `model.preset`, if there is one, by the keys that it stands for.

    Raises:
        RecipeError: for a name that is no preset.
    """
    model = layers.values.get("model")
    if not isinstance(model, dict) or "preset" not in model:
        return
    name, origin = model.pop("preset"), layers.origins.pop(LOC)
    try:
        fields = preset(name) if isinstance(name, str) else None
    except UserError as error:
        raise RecipeError(layers.name, [Problem("model.preset", str(origin), given(name), str(error))]) from None
    if fields is None:
        allowed = 'a size in quotes, such as "125M".'
        raise RecipeError(layers.name, [Problem("model.preset", str(origin), given(name), allowed)])
    for key, value in fields.items():
        loc = ("model", key)
        if key in model and layers.origin(loc).order >= origin.order:
            continue
        for old in [o for o in layers.origins if o[:2] == loc]:
            del layers.origins[old]
        model[key] = value
        layers.origins[loc] = Origin(origin.source, origin.line, order=origin.order)
