"""`make check` asks for known vulnerabilities, and does without where nobody answers."""

from __future__ import annotations

import json
import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FAKE = """
import json, sys, time
asked = open(sys.argv[sys.argv.index("--requirement") + 1]).read().split()
{body}
"""
ANSWER = """
known = json.loads({known!r})
found = [{{"name": one.split("==")[0], "version": one.split("==")[1], "vulns": known.get(one, [])}} for one in asked]
print(json.dumps({{"dependencies": found, "fixes": []}}))
sys.exit(any(one["vulns"] for one in found))
"""
UNKNOWN = 'print(json.dumps({"dependencies": [{"name": one, "skip_reason": "not found"} for one in asked]}))'
OFFLINE = 'sys.exit("ERROR: Connection refused")'


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, **settings: Any) -> int:
    """Run the audit with a program in pip-audit's place."""
    program = tmp_path / "fake.py"
    program.write_text(FAKE.replace("{body}", body))
    module = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
    main = module["main"]
    listed = tmp_path / "constraints.txt"
    listed.write_text("# pinned\nsafe==1.0\nweak==2.0\n")
    main.__globals__.update({"AUDIT": [sys.executable, str(program)], "CONSTRAINTS": listed, **settings})
    code: int = main()
    return code


def test_a_known_vulnerability_ends_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"weak==2.0": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}, {"id": "PYSEC-2", "fix_versions": []}]}
    assert run(tmp_path, monkeypatch, ANSWER.format(known=json.dumps(known))) == 1
    assert capsys.readouterr().out.splitlines() == [
        "audit: weak 2.0 has PYSEC-1, which 2.1 mends",
        "audit: weak 2.0 has PYSEC-2, which no version mends",
        "audit: 2 packages looked up, 1 with known vulnerabilities",
    ]
    assert run(tmp_path, monkeypatch, ANSWER.format(known="{}")) == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (UNKNOWN, "the package index reached from here tells of none"),
        (OFFLINE, "ERROR: Connection refused"),
        ("time.sleep(60)", "it did not answer within 0.4 seconds"),
        ("print('<html>')", "pip-audit ended with 0"),
    ],
)
def test_where_nobody_answers_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: str, reason: str
) -> None:
    quick = {"ANSWER_SECONDS": 0.1} if "sleep" in body else {}
    assert run(tmp_path, monkeypatch, body, **quick) == 0
    assert capsys.readouterr().out == f"audit: known vulnerabilities were not looked up, as {reason}\n"


def test_every_dependency_has_a_lower_bound_and_an_exact_version_for_continuous_integration() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        for dependency in group:
            name = dependency.split("[")[0].split(">")[0].split("<")[0].lower()
            assert name in pinned, dependency
            if not name.startswith("types-"):  # only what mypy reads
                assert ">=" in dependency, dependency
