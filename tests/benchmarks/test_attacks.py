"""The collection of attacks: a part of it holds, its claims are the page's, and a broken claim is counted."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from benchmarks.attacks.__main__ import every_attack, page, run
from benchmarks.attacks.arena import Arena, Attack
from benchmarks.attacks.claims import DAMAGED, NUMBERS, PICKLE, claimed, line_of

QUICK, LONG = 4, 16  # of a claim's attacks, evenly
CLAIMS = (
    *("a pickle with", "any other damage to the file", "any other `results.json`", "any `task.json`", "odd lines"),
    *("any other damage to a shard", "any other COCO"),
)


def test_each_attack_belongs_to_a_line_of_the_page() -> None:
    attacks = every_attack()
    assert len(attacks) >= 600
    assert {line_of(one.claim) for one in attacks} <= set(claimed())
    with pytest.raises(LookupError, match="no line that begins with 'no such claim'"):
        line_of("no such claim")


def some_of(claim: str, count: int) -> list[Attack]:
    """Return `count` attacks of a claim, or all where it has fewer; none that starts a whole run."""
    own = [one for one in every_attack() if one.claim.startswith(claim) and not one.name.startswith("resume")]
    count = min(count, len(own))
    assert count >= QUICK
    return [own[len(own) * number // count] for number in range(count)]


@pytest.mark.parametrize("count", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_claims_hold(count: int, tmp_path: Path) -> None:
    """All in one arena, whose run and labels take longer to make than most attacks."""
    attacks = [one for claim in CLAIMS for one in some_of(claim, count)]
    outcomes = list(run(attacks, tmp_path))
    assert len(outcomes) == len(attacks)
    assert [(one.attack.claim, one.attack.name, one.why) for one in outcomes if one.why] == []


def runs_something(arena: Arena) -> None:
    subprocess.run(["true"], check=True)


def writes_elsewhere(arena: Arena) -> None:
    (Path(__file__).parent / "written").open("a").close()


def reads_secret(arena: Arena) -> None:
    arena.secret.read_bytes()


def makes(arena: Arena) -> None:
    arena.made.mkdir()


def raises(arena: Arena) -> None:
    raise KeyError("loss")


def takes_what_must_be_refused(arena: Arena) -> None:
    arena.call(lambda: None)


def test_a_broken_claim_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # these tests may themselves lie in the usual one
    deeds = (runs_something, writes_elsewhere, reads_secret, makes, raises, takes_what_must_be_refused)
    attacks = [Attack(PICKLE if deed is makes else NUMBERS, deed.__name__, deed) for deed in deeds]
    try:
        outcomes = list(run([*attacks, Attack(DAMAGED, "nothing", lambda arena: None)], tmp_path))
    finally:
        (Path(__file__).parent / "written").unlink(missing_ok=True)
    assert [one.attack.name for one in outcomes if one.why] == [deed.__name__ for deed in deeds]
    assert [one.traceback for one in outcomes].count(True) == 1
    text = page(outcomes, "python -m benchmarks.attacks", 1.0)
    assert "**7 attacks tried, 6 broken, 1 tracebacks.**" in text
    assert f"| {line_of(PICKLE)} | 1 | **0** |" in text
    assert f"| {line_of(DAMAGED)} | 1 | 1 |" in text
