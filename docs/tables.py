"""Writes the generated tables of the method pages, in place: what an option means, and which scores are expected.

    python docs/tables.py            write them
    python docs/tables.py --check    change nothing; exit with 1 where a page is out of date

A page holds `<!-- options METHOD -->` or `<!-- expected PREFIX -->`, the table, and `<!-- end -->`. Options come from
`dovetail.recipes.table.options_of`, their text from the docstrings of the recipes' functions, expected scores from the
heads of recipes/paper/PREFIX-*.yaml. It also writes src/dovetail/recipes/options.json, which the command line reads.
`tests/test_docs.py` checks that nothing has drifted.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, get_args

DOCS = Path(__file__).parent
PAPER = DOCS.parent / "recipes" / "paper"
BLOCK = re.compile(r"<!-- (options|expected) ([\w.+-]+) -->\n(.*?)<!-- end -->", re.DOTALL)


def options_table(method: str) -> str:
    """Return the table of a method's options; of a transformer ("adclr", "decon"), its own ones only."""
    from dovetail.recipes.presets import SHORT_ADCLR, SHORT_DECON, SMALL, short_options
    from dovetail.recipes.table import options_of, parse, part, parts_of

    own = TRANSFORMERS.get(method)
    parts = {method: part(own)} if own else parts_of(parse(method))
    known = parts[method].options if own else options_of(method)
    helps: dict[str, str] = {}
    for one in parts.values():
        said = one.texts
        helps = {name: said.get(name.removeprefix(one.prefix), "") for name in one.options} | helps
    rows = ["| option | type | published | small preset | short preset | meaning |", "|---|---|---|---|---|---|"]
    short = {"adclr": SHORT_ADCLR, "decon": SHORT_DECON}.get(method) or short_options(method)
    for name, parameter in known.items():
        presets = (f"`{preset[name]}`" if name in preset else "" for preset in (SMALL, short))
        spelt = f"`{name}`, set by `{RUNS[name]}`" if name in RUNS else f"`{name}`"
        default = "null" if parameter.default is None else parameter.default
        cells = (spelt, kind(parameter.annotation), f"`{default}`", *presets, helps[name])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


RUNS = {"base_lr": "--lr", "image_size": "--image-size"}
TRANSFORMERS = {"adclr": "dovetail.recipes.query_terms:adclr", "decon": "dovetail.recipes.decoder_terms:decon"}


def list_options(*, check: bool) -> bool:
    """Write the list of all recipes' options that the command line reads, or only look; return whether it was stale."""
    from dovetail.recipes.listed import FILE, content, listed, listing
    from dovetail.recipes.table import places

    fresh = listing(places())
    stale = not FILE.is_file() or FILE.read_text(encoding="utf-8") != fresh
    if stale and not check:
        FILE.write_text(fresh, encoding="utf-8")
        content.cache_clear()
        listed.cache_clear()
    return stale


def kind(annotation: Any) -> str:
    """Return a type as users read it."""
    from dovetail.sizes import Size

    choices = get_args(annotation)
    if annotation == Size:
        return "int or height x width"
    if choices and all(isinstance(choice, str) for choice in choices):
        return " or ".join(f"`{choice}`" for choice in choices)
    if isinstance(annotation, type) and not choices:
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("None", "null")


def expected_table(prefix: str) -> str:
    """Return what the files recipes/paper/PREFIX-*.yaml say on the expected score and on what is not known."""
    rows = ["| recipe | expected | not known |", "|---|---|---|"]
    for file in sorted(PAPER.glob(f"{prefix}-*.yaml")):
        facts = header(file)
        cells = (f"`{file.name}`", facts.get("Expected", ""), facts.get("Unknown", ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def header(file: Path) -> dict[str, str]:
    """Return the notes at the head of a recipe's file by their first word; lines with three spaces go on."""
    text = file.read_text(encoding="utf-8")
    return {
        word: " ".join(note.replace("\n#", " ").split())
        for word, note in re.findall(r"^# (\w+): (.+(?:\n#   .+)*)", text, flags=re.MULTILINE)
    }


def filled(text: str) -> str:
    """Return a page with its tables written anew."""
    makers = {"options": options_table, "expected": expected_table}

    def table(match: re.Match[str]) -> str:
        what, name, _ = match.groups()
        return f"<!-- {what} {name} -->\n\n{makers[what](name)}\n<!-- end -->"

    return BLOCK.sub(table, text)


def main() -> int:
    """Write or check all pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a page is out of date")
    check = parser.parse_args().check
    stale = []
    listed_stale = list_options(check=check)
    if listed_stale:
        print(f"options.json of the recipes: {'out of date' if check else 'written'}")
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        fresh = filled(text)
        if fresh != text:
            stale.append(page)
            if not check:
                page.write_text(fresh, encoding="utf-8")
    for page in stale:
        print(f"{page.relative_to(DOCS)}: {'out of date' if check else 'written'}")
    return int(check and (listed_stale or bool(stale)))


if __name__ == "__main__":
    sys.exit(main())
