"""`make audit` says what is known against a package, and never takes silence for a good sign."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).parents[1] / "infra" / "audit" / "audit.py"
CVE = {"id": "GHSA-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}


def audit() -> Any:
    spec = importlib.util.spec_from_file_location("tokenmill_audit", AUDIT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(told: dict[str, Any]) -> Any:
    """A pip-audit whose database knows this: a list of advisories, or why a package was passed over."""

    def ask(requirements: Path, _options: Any) -> tuple[str, str]:
        names = [line.split("==")[0] for line in requirements.read_text(encoding="utf-8").splitlines()]
        known = {"jinja2": [CVE], **told}
        return json.dumps(
            {
                "dependencies": [
                    {"name": n, "vulns": known[n]} if isinstance(known[n], list) else {"name": n, "skip_reason": "…"}
                    for n in names
                    if n in known
                ]
            }
        ), ""

    return ask


def told(about_b: Any) -> Any:
    """An answer about B_c that has this in place of one; about the others there is a good one."""

    def ask(requirements: Path, options: Any) -> tuple[str, str]:
        whole, complaints = answers({"a": [], "B_c": []})(requirements, options)
        found = json.loads(whole)
        found["dependencies"] = [about_b if one["name"] == "B_c" else one for one in found["dependencies"]]
        return json.dumps(found), complaints

    return ask


@pytest.mark.parametrize(
    "about_b",
    [
        {"name": "B_c", "vulns": None},
        {"name": "B_c", "vulns": "none"},
        {"name": "B_c", "vulns": [1]},
        {"name": "B_c", "vulns": [{}]},
        {"name": "B_c", "vulns": [{"id": "X", "aliases": [1]}]},
        {"name": "B_c", "vulns": [{"id": "X", "fix_versions": {"a": 1}}]},
        {"name": "B_c", "version": "1.4", "vulns": []},
    ],
)
def test_what_has_no_answers_shape_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], about_b: Any) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("a==1.0\nB_c==1.5  # why\n", encoding="utf-8")
    assert audit().main([str(constraints)], told(about_b)) == 2
    assert "Not audited: no answer about B_c." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a==1.0\nb @ file:///srv/b", "line 2 of"),
        ("a==1.0\n-r other.txt", "line 2 of"),
        ("a>=1.0", "line 1 of"),
        ("a==", "line 1 of"),
        ("# nothing\n\n", "pins no package"),
        (None, "can't be read"),
    ],
)
def test_a_line_that_pins_nothing_is_no_package_without_advisories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str | None, said: str
) -> None:
    constraints = tmp_path / "constraints.txt"
    if lines is not None:
        constraints.write_text(lines, encoding="utf-8")
    assert audit().main([str(constraints)], answers({"a": [], "b": []})) == 2
    assert said in capsys.readouterr().out


def test_a_strangers_words_steer_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("a==1.0\n", encoding="utf-8")
    assert audit().main([str(constraints)], answers({"a": [{"id": "X\x1b[2J\n", "aliases": None}]})) == 1
    assert audit().main([str(constraints)], lambda *_: ("", "\x1b[2Jno route")) == 2
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ask", "code", "said"),
    [
        (answers({"a": [], "B_c": []}), 0, "0 of 2 packages have a known vulnerability"),
        (answers({"a": [], "B_c": [CVE]}), 1, "B_c==1.5: GHSA-1 (CVE-1); fixed in 2.0"),
        (answers({"a": [], "B_c": "skipped"}), 2, "Not audited: no answer about B_c."),
        (answers({"a": []}), 2, "Not audited: no answer about B_c."),
        (answers({"a": [], "B_c": [], "jinja2": []}), 2, "Not audited: the database answers, but knows nothing"),
        (lambda *_: ("", "x\nConnectionError: no route to host\n"), 2, "Not audited: ConnectionError: no route"),
        (lambda *_: ("[]", ""), 2, "Not audited: []"),
        (lambda *_: ("", ""), 2, "Not audited: pip-audit says nothing"),
    ],
    ids=["clean", "vulnerable", "skipped", "left out", "empty database", "away", "nonsense", "silent"],
)
def test_only_an_answer_about_every_package_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ask: Any, code: int, said: str
) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("a==1.0\nB_c==1.5\n", encoding="utf-8")
    assert audit().main([str(constraints)], ask) == code
    assert said in capsys.readouterr().out
