"""A quantized model for formats that don't know our codes: its folder with the numbers that the codes stand for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def plain_weights(source: Path) -> Iterator[Path]:
    """Within this, a folder of plain weights: `source` itself, or a copy of it with its codes decoded."""
    from cluster.registry.find import FILES
    from model.checkpoint import CONFIG, WEIGHTS, load_model, load_quantization, save_model
    from model.quantize.replace import widened

    if load_quantization(source) is None:
        yield source
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_model(widened(load_model(source)), folder)
        for name in FILES:
            if name not in (WEIGHTS, CONFIG) and (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        yield folder
