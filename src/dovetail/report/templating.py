"""Pages from templates, and onto the disk in one move."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dovetail.report.plots import LINE_COLOURS
from dovetail.report.sample import BOX_COLOURS


def filled(template: str, **values: Any) -> str:
    """Return a template of this package with its values; everything but `Markup` is escaped."""
    environment = Environment(
        loader=PackageLoader("dovetail.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"line_colours": LINE_COLOURS, "box_colours": BOX_COLOURS}
    return environment.get_template(template).render(**values)


def replace_file(path: Path, text: str) -> None:
    """Write a page in one move: a reader finds the old one or the new one, whole."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8", errors="replace")
    aside.replace(path)
