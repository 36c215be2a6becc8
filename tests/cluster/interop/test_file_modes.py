"""The umask decides who may read what is written: imports, exports, checkpoints."""

import os
import stat
from pathlib import Path

import pytest
import torch

from cluster.interop.gguf import export_gguf
from cluster.interop.huggingface import export_folder, import_folder
from cluster.train.worker import Worker
from model.checkpoint import load_model, save_model
from model.optim.groups import make_optimizers, save_optimizers
from model.train_config import TrainConfig
from tests.cluster.tiny_model import make_model


@pytest.fixture(params=[0o022, 0o002, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def check(folder: Path, umask: int) -> int:
    """All below `folder` has the umask's modes; returns how many files there are."""
    paths = list(folder.rglob("*"))
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, (path, oct(mode))
    return sum(path.is_file() for path in paths)


def test_imports_and_exports_have_the_umask_s_modes(umask, tmp_path):
    pytest.importorskip("gguf")
    make_model(tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "theirs", None, 20_000)
    export_gguf(tmp_path / "ours", tmp_path / "m.gguf")
    import_folder(tmp_path / "theirs", tmp_path / "back")
    import_folder(tmp_path / "m.gguf", tmp_path / "back from one file")
    assert check(tmp_path, umask) > 20


def test_a_checkpoint_has_the_umask_s_modes(umask, tmp_path):
    store = tmp_path / "store"
    model = load_model(make_model(tmp_path / "ours"))
    optimizers = make_optimizers(model, TrainConfig())
    model(torch.tensor([[1, 2]]))[0].sum().backward()
    for optimizer in optimizers:
        optimizer.step()

    def write(folder: Path) -> None:
        save_model(model, folder)
        save_optimizers(optimizers, model, folder / "optimizer.safetensors")

    worker = Worker(0, 1, 0, str(store), "a" * 64, None)
    worker.save(1, write)
    assert worker.checkpoints().latest()[0] == 1
    assert check(store, umask) >= 4
