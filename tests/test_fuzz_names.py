"""A part of `make fuzz`, in seconds; and the watch sees what it is to see."""

import logging
import shutil

import pytest

from tests import fuzz_names


def test_no_name_in_a_file_reaches_out_of_its_folder(caplog):
    with caplog.at_level(logging.ERROR, logger="cluster"):
        assert fuzz_names.fuzz(400, first_seed=1_000_000) >= 400


@pytest.mark.parametrize("deed", ["write", "new", "read", "delete", "chmod", "move in"])
def test_the_watch_sees_whatever_is_done_outside(deed):
    with fuzz_names.world() as around:
        around.watch.happened()
        (around.fresh() / "x").write_bytes(b"x")
        assert around.watch.happened() == []
        there = around.outside / "x"
        {
            "write": lambda: there.write_bytes(b"y"),
            "new": lambda: (around.outside / "new").touch(),
            "read": there.read_bytes,
            "delete": there.unlink,
            "chmod": lambda: there.chmod(0o600),
            "move in": lambda: shutil.move(around.inner / "f" / "x", around.outside / "moved"),
        }[deed]()
        assert around.watch.happened() != []
