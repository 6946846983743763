"""Renders page templates and writes pages atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dovetail.report.plots import LINE_COLOURS
from dovetail.report.sample import BOX_COLOURS


def filled(template: str, **values: Any) -> str:
    """Render a template of this package. All values except `Markup` are escaped."""
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
    """Write a page atomically: a reader sees either the old or the new page."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8", errors="replace")
    aside.replace(path)
