"""What the docs say of the tree is true of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import licences
from tests.files import ROOT, page

DOCS = [ROOT / "README.md", ROOT / "docs" / "guide.md"]


def test_the_list_of_files_is_that_of_the_tree() -> None:
    assert (ROOT / "docs" / "files.md").read_text(encoding="utf-8") == page(), "python -m tests.files > docs/files.md"


def test_the_list_of_licences_is_that_of_what_is_installed() -> None:
    told = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8").splitlines()
    true = [line for line in licences.page().splitlines() if "not installed here" not in line]
    assert [line for line in true if line not in told] == [], "make licences"
    named = {line.split(" | ")[0] for line in told}
    assert named == {line.split(" | ")[0] for line in licences.page().splitlines()}, "make licences"


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.name)
def test_every_file_that_the_docs_name_is_there(doc: Path) -> None:
    named = set(
        re.findall(r"`((?:flows|cluster|model|tests|infra|docs)/[\w./-]+\.\w+)`", doc.read_text(encoding="utf-8"))
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
