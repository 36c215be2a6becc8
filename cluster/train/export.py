"""What a training leaves: the last checkpoint's weights as an artifact, its curves as figures; and its progress."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cluster.stage import Workspace
from cluster.train.summary import TrainingSummary
from cluster.train.worker import EVENTS
from model.config import ModelConfig

S = TypeVar("S", bound=TrainingSummary)

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


def export_model(ws: Workspace, tokenizer: Path, result: dict, summary: type[S] = TrainingSummary) -> S:
    """The last checkpoint's weights become the artifact: model.safetensors, config.json, tokenizer.*, train.json.

    The optimizer's state stays behind: a model artifact is what later stages and the registry read.
    """
    found = ws.checkpoints.latest()
    if found is None or found[0] != result["steps"]:
        raise RuntimeError(f"{ws.step}: the last checkpoint is {found and found[0]}, expected {result['steps']}.")
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(found[1] / name, ws.out / name)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, ws.out / name)
    (ws.out / "train.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    curve_figures(ws)
    layers = ModelConfig.from_dict(json.loads((ws.out / "config.json").read_text(encoding="utf-8"))).layer_mixers
    aside = {"set_aside": ws.checkpoints.aside()}
    trained = {"mixers": list(dict.fromkeys(layers)), "objective": ws.config.train.objective}
    return summary.read({**result, **trained, **aside})


def curve_figures(ws: Workspace) -> None:
    """The curves a person looks at first, as figures beside the run's own metric plots."""
    steps, series = [], {"loss": [], "lr": [], "grad_norm": []}
    for line in (ws.out / EVENTS).read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["type"] == "metrics" and "loss" in event["values"]:
            steps.append(event["step"])
            for name, values in series.items():
                values.append(event["values"][name])
    for name, values in series.items():
        ws.events.figure(
            f"{ws.step}_{name}",
            {
                "title": f"{ws.step}: {name}",
                "x_label": "step",
                "y_label": name,
                "kind": "line",
                "series": [{"name": name, "x": steps, "y": values}],
            },
        )


def progress(ws: Workspace, steps: int) -> Callable[[dict], None]:
    """A driver-side listener that turns the curve's points into the progress bar's text."""

    def listen(event: dict) -> None:
        if event["type"] != "metrics" or "loss" not in event["values"]:
            return
        values = event["values"]
        text = f"loss {values['loss']:.3f}  {values['tokens_per_second'] / 1000:.1f}k tok/s"
        if "reward" in values:
            text = f"reward {values['reward']:.3f}  {text}"
        ws.progress(event["step"], steps, text)

    return listen
