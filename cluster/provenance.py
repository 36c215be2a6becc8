"""Which code and which packages made an artifact: recorded in its manifest, never part of its fingerprint."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from cluster.masking import login_of

ROOT = Path(__file__).resolve().parent.parent  # the checkout, or site-packages
ROOMS = ("flows", "cluster", "model")
PACKAGES = (
    "torch", "ray", "mlflow", "prefect", "sentencepiece", "boto3", "pydantic", "safetensors", "numpy",
    "pyarrow", "ftfy", "zstandard",
)  # fmt: skip


@functools.cache
def code_version() -> str:
    """`git describe` in a checkout, with the sources' hash where they differ from the commit; else version+hash."""
    if (ROOT / ".git").exists():
        try:
            described = subprocess.run(
                ["git", "-C", str(ROOT), "describe", "--tags", "--always", "--dirty", "--abbrev=12"],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
                encoding="utf-8",
            ).stdout.strip()
            return f"{described}+{sources_hash()}" if described.endswith("-dirty") else described
        except (OSError, subprocess.SubprocessError):
            pass  # no git here, or another owner's checkout
    return f"{_version('tokenmill') or '0'}+{sources_hash()}"


@functools.cache
def repository() -> str:
    """Where this code came from, for who wants to report something: the checkout's origin, else the package's URL."""
    if (ROOT / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
            answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True, encoding="utf-8")
            return login_of(answer.stdout.strip())[0]  # a clone's URL may hold a token
    with contextlib.suppress(metadata.PackageNotFoundError):
        urls = dict(u.split(", ", 1) for u in metadata.metadata("tokenmill").get_all("Project-URL") or [])
        return next((urls[n] for n in ("Issues", "Repository", "Homepage") if n in urls), "")
    return ""


@functools.cache
def sources_hash() -> str:
    """A short hash of the package's own sources: names and content."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@functools.cache
def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on; what isn't installed is left out."""
    versions = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **{n: v for n, v in versions.items() if v}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
