"""A path that a person named and that can't be used is told by itself and the reason; no other fault is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cluster.errors import UserError, named_by_a_person


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "models/config.json"), "models/config.json: No such file."),
        (PermissionError(errno.EACCES, "Permission denied"), "models: Permission denied."),
        (IsADirectoryError("it is a folder"), "models: it is a folder."),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: Read-only file system."),
    ],
    ids=repr,
)
def test_what_is_wrong_with_a_path_is_said_of_the_nearest_one_that_is_known(error: OSError, said: str) -> None:
    with pytest.raises(UserError) as told, named_by_a_person(Path("models")):
        raise error
    assert str(told.value) == said and told.value.__cause__ is error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full", "x"), ConnectionResetError("by peer")], ids=repr)
def test_a_fault_of_the_machine_or_the_network_is_no_ones_word(error: OSError) -> None:
    with pytest.raises(OSError) as told, named_by_a_person("models"):
        raise error
    assert told.value is error
