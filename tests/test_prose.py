"""The prose that users meet: words of the glossary in CONTRIBUTING.md, and no phrases that native speakers stop at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
SOURCES = sorted((ROOT / "src").rglob("*.py"))
NOT_AGAIN = (
    r"[Kk]ind of device",
    r"of weights, order of images",
    r"given count more",
    r"reads only the next",
    r"set of Hugging Face's",
    r"[Ll]ines of the log with",
    r"no image in a format that is read here",
    r"let it go on",
    r"knows its own parts",
    r"cannot be told",
    r"what is not said",
    r"a cosine takes it",
    r"is no multiple of",
    r"[Gg]oing on from",
    r"goes on from there",
    r"What usually helps",
    r"brings that back",
    r"[Tt]win in the teacher",
    r"nearer to 1\b",
    r"says no number",
    r"made for these pages",
    r"stands? still",
    r"so that (it|they|no \w+) cannot",
    r"takes? the place of",
    r"no code of it",
    r"is no regular file",
    r"for want of memory",
    r"left fresh",
    r"goes on with",
    r"give the same images",
    r"(was|were) named; give",
    r"stop being numbers",
    r"would be written over",
    r"what is left",
    r"tells? \S+ apart",
    r"images beside masks",
    r"is left as it was",
    r"let alone",
    r'"""[A-Z][a-z]+: [Oo]f ',
    r": Of ",
    r"may not (decide|choose)",
    r"is no (map|pair|ViT|COCO)",
    r"; mend ",
    r"[Nn]othing where",
)
"""Regular expressions. Where one is found, say it with the words of the glossary."""


def found_in(text: str) -> list[str]:
    """Return the phrases of a text that should not be there, whatever its line breaks."""
    flat = re.sub(r"\s+", " ", text)
    return [phrase for phrase in NOT_AGAIN if re.search(phrase, flat)]


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_phrase_of_the_list_is_back(path: Path) -> None:
    assert found_in(path.read_text(encoding="utf-8")) == []


def test_a_phrase_is_found_across_a_line_break() -> None:
    assert found_in("no image in a\n    format that is read here") == [r"no image in a format that is read here"]


def test_the_glossary_is_short_and_names_each_word_once() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \|[^|]*\|[^|]*\|$", text[text.index("### Words") :], re.MULTILINE)[2:]
    assert 20 <= len(rows) <= 40
    assert len(set(rows)) == len(rows)
