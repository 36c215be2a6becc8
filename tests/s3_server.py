"""The S3 server of the tests: infra/s3/serve.py, loaded by its path, since infra is no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SERVE = Path(__file__).resolve().parent.parent / "infra" / "s3" / "serve.py"


def load_serve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tokenmill_s3_serve", SERVE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
