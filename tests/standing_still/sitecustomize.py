"""A training that stands still, for tests that end its process there: Python runs this where it is on the PYTHONPATH.

STAND_STILL=15:FILE     each rank has noted its 15th step, and waits until FILE is there
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "cluster.train.worker"


class Finder(importlib.abc.MetaPathFinder):
    """Finds that module as others do, and changes it once it is loaded."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            stand_still(module.Worker)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def stand_still(worker: Any) -> None:
    at, _, file = os.environ["STAND_STILL"].partition(":")
    note = worker.metrics

    def metrics(self: Any, step: int, values: dict[str, float]) -> None:
        note(self, step, values)
        while step == int(at) and not Path(file).exists():
            time.sleep(0.05)

    worker.metrics = metrics


if "STAND_STILL" in os.environ:
    sys.meta_path.insert(0, Finder())
