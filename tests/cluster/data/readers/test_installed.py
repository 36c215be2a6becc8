"""The embedded sources: real text of what is installed, the same each time, with nothing executed."""

from __future__ import annotations

import ast
import subprocess
import sys
import time

import pytest

from cluster.data.readers import docstrings, installed

LIMIT = 10_000_000
SMALL = "packages=rich,typer"


def documents(url: str) -> list[tuple[str, str]]:
    found = [(name, record.text) for part in installed.plan(url) for name, record in installed.read(part, LIMIT)]
    assert all(text is not None for _, text in found)
    return [(name, text or "") for name, text in found]


@pytest.mark.parametrize("what", ["prose", "code"])
def test_documents_have_unique_names_and_real_text(what):
    found = documents(f"installed://{what}?{SMALL}")
    names = [name for name, _ in found]
    assert len(names) == len(set(names)) > 50
    assert {name.split("/")[0] for name in names} == {"rich", "typer"}
    assert all(len(text) >= installed.MIN_CHARS for _, text in found)


def test_code_is_the_modules_source_and_parses():
    found = dict(documents("installed://code?packages=typer"))
    assert "typer/typer.main" in found
    for text in found.values():
        ast.parse(text)


def test_prose_is_docstrings_under_their_signatures_and_what_packages_say_of_themselves():
    found = dict(documents("installed://prose?packages=stdlib,rich"))
    json_module = found["stdlib/json"]
    assert json_module.startswith("Module json\n\nJSON (JavaScript Object Notation)")
    assert "\nFunction loads(s, *, cls=None, object_hook=None" in json_module
    assert "rich/METADATA" in found
    assert any(name.startswith("stdlib/pydoc_data.topics:") for name in found)


def test_tests_vendored_copies_and_licences_are_left_out():
    names = [name for name, _ in documents("installed://code?packages=stdlib,numpy")]
    names += [name for name, _ in documents("installed://prose?packages=numpy")]
    for part in (".tests.", ".test.", "_vendor", "vendored", "LICENSE", "_pb2"):
        assert not [name for name in names if part in name]


def test_the_cap_holds_and_mixes_the_packages():
    for what in ("prose", "code"):
        capped = documents(f"installed://{what}?packages=stdlib,numpy&max_mb=1")
        size = sum(len(text.encode()) for _, text in capped)
        assert 0.6e6 < size <= 1e6
        assert {name.split("/")[0] for name, _ in capped} == {"stdlib", "numpy"}


def test_the_plan_is_the_same_each_time_and_in_another_process():
    url = "installed://prose?packages=rich&max_mb=0.1"
    assert installed.plan(url) == installed.plan(url)
    code = f"from cluster.data.readers import installed; print(installed.digest({url!r}))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    assert out.strip() == installed.digest(url)


def test_the_digest_tells_addresses_apart_and_is_fast():
    urls = ["installed://prose", "installed://code", "installed://prose?max_mb=3", f"installed://prose?{SMALL}"]
    installed.digest("installed://prose")
    begun = time.process_time()
    assert len({installed.digest(url) for url in urls}) == 4
    assert time.process_time() - begun < 2.0  # about 0.1 s each


def test_reading_imports_none_of_the_packages():
    code = (
        "import sys; from cluster.data.readers import installed, docstrings\n"
        "url = 'installed://prose?packages=networkx,sympy,turtle'.replace(',turtle', '')\n"
        "assert sum(1 for p in installed.plan(url)[:1] for _ in installed.read(p, 10**7)) > 5\n"
        "print(sorted({'networkx', 'sympy', 'turtle', 'torch', 'ray'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize(
    "url,message",
    [
        ("installed://poetry", "installed://prose and installed://code, optionally"),
        ("installed://prose?package=rich", "unknown parameter 'package'"),
        ("installed://prose?packages=numpi", "Did you mean numpy"),
        ("installed://prose?packages=sklearn", "scikit-learn"),
        ("installed://prose?max_mb=none", "max_mb is 'none'"),
        ("installed://prose?max_mb=0", "max_mb is '0'"),
        ("installed://prose?max_mb=inf", "max_mb is 'inf'"),
        ("installed://prose?max_mb=1e999", "max_mb is '1e999'"),
    ],
)
def test_a_wrong_address_says_what_is_right(url, message):
    with pytest.raises(ValueError, match=message):
        installed.parse(url)


def test_a_worker_with_another_version_is_refused():
    part = installed.plan("installed://prose?packages=rich")[0]
    part["versions"] = {"rich": "0.1"}
    with pytest.raises(RuntimeError, match=r"rich is 0\.1 where the run was started"):
        next(installed.read(part, LIMIT))


MODULE = '''"""About the module.

More of it.
"""
import sys

raise SystemExit("executed")

if sys.platform:
    def first(a, b: int = 3, *args, key="x", **rest) -> "str":
        """Do the first thing
        in two lines.

        Details.
        """
else:
    def other(): "Another."

class Thing(Base, metaclass=M):
    """A thing."""
    def act(self, force=1.0):
        """Act."""
    def _hidden(self):
        """Hidden."""
    def silent(self): pass
    class Inner:
        def deep(self, *, x):
            """Deep."""

async def run(): """Run it."""
def _private(): """Private."""
'''


def test_prose_of_a_module():
    ((suffix, text),) = docstrings.prose(MODULE, "pack.mod")
    assert suffix == ""
    assert text == (
        "Module pack.mod\n\nAbout the module.\n\nMore of it.\n\n"
        "Function first(a, b: int=3, *args, key='x', **rest) -> 'str'\n\n"
        "Do the first thing\nin two lines.\n\nDetails.\n\n"
        "Function other()\n\nAnother.\n\n"
        "Class Thing(Base)\n\nA thing.\n\nMethod Thing.act(self, force=1.0)\n\nAct.\n\n"
        "Method Thing._hidden(self)\n\nHidden.\n\nMethod Thing.Inner.deep(self, *, x)\n\nDeep.\n\n"
        "Function run()\n\nRun it.\n"
        "\nFunction _private()\n\nPrivate.\n"
    )


def test_a_big_module_is_a_document_for_each_class():
    big = (
        '"""Top."""\n'
        + "".join(f'class C{i}:\n    """{"word " * 400}"""\n' for i in range(12))
        + 'class C3:\n    """Again."""\n'
    )
    found = dict(docstrings.prose(big, "m"))
    assert list(found) == ["", *(f":C{i}" for i in range(12)), ":C3~2"]
    assert found[""] == "Module m\n\nTop.\n"
    assert found[":C1"].startswith("Module m\n\nClass C1\n\nword word")


@pytest.mark.parametrize("text", ["def f(:", "x = \0", "print 'python 2'", "(" * 10_000])
def test_what_is_no_python_gives_nothing(text):
    assert list(docstrings.prose(text, "m")) == []


def test_source_encodings():
    assert (
        docstrings.decode("# -*- coding: latin-1 -*-\ns = 'é'\r\n".encode("latin-1"))
        == "# -*- coding: latin-1 -*-\ns = 'é'\n"
    )
    assert docstrings.decode(b"\xef\xbb\xbfx = 1") == "x = 1"
    assert docstrings.decode(b"x = '\xff'") is None
    assert docstrings.decode(b"# coding: nonsense\n") is None


def test_a_file_is_taken_from_the_least_size_to_the_cap(monkeypatch):
    least, most = installed.MIN_CHARS, installed.MAX_FILE_BYTES
    sizes = (least - 1, least, most, most + 1)
    monkeypatch.setattr(installed, "_recorded", lambda package: [(f"rich/a{size}.py", size, "") for size in sizes])
    assert [file.size for file in installed._package_files("rich")] == [least, most]
