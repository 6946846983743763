"""The tables at the top of docs/results.md: what one start gains over another, by images and measure.

The page holds `<!-- summary -->`, the tables, and `<!-- end -->`. A line needs a comparison with five seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.evidence.rows import (
    ADCLR,
    CONTINUED,
    DINO,
    DINO_LONGER,
    IMAGENET,
    SLOTCON_CONTINUED,
    SLOTCON_CONTINUED_LONGER,
    TARGETS_LONGER,
    Row,
)
from benchmarks.evidence.statistics import Estimate, paired
from benchmarks.evidence.tables import Section, difference, line_of, rewrite

BLOCK = re.compile(r"<!-- summary -->\n((?:(?!<!--).)*?)<!-- end -->", re.DOTALL)
IMAGES = ("rendered scenes", "cut-outs", "textures")
SCENES, CUTOUTS, TEXTURES = IMAGES

CLAIM_SEEDS = 5

SectionOf = Callable[[str, str], Section]


@dataclass(frozen=True)
class Source:
    """Where the scores on one set of images are: the question, its scale and the number or share of labels."""

    question: str
    scale: str
    labels: float


@dataclass(frozen=True)
class Measured:
    """A measure, and where its scores are.

    Attributes:
        name: The measure in words.
        sources: Where the scores are, by name of the images; the differences of several renderings are pooled.
        tap: Where frozen maps are measured; None for what a row takes along in fine-tuning.
        score: Name of the score.
        network: What is appended to the names of the rows.
    """

    name: str
    sources: Mapping[str, tuple[Source, ...]]
    tap: str | None = None
    score: str = "mIoU"
    network: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two rows: the gain of the first over the second."""

    name: str
    first: Row
    second: Row

    def found(self, measured: Measured, images: str, section_of: SectionOf) -> Estimate | None:
        """Return the difference in points; None where there is none."""
        first, second = (
            {
                (source.scale, seed): score
                for source in measured.sources.get(images, ())
                for seed, score in section_of(source.question, source.scale)
                .scores(measured.score)
                .get((row.name + measured.network, measured.tap or row.starts[0], source.labels), {})
                .items()
            }
            for row in (self.first, self.second)
        )
        return paired(first, second)


@dataclass(frozen=True)
class Gains:
    """A table: comparisons across, images and measures down, after a line of text."""

    lead: str
    comparisons: tuple[Comparison, ...]
    measures: tuple[Measured, ...]

    def text(self, section_of: SectionOf) -> str:
        """Return the table."""
        names = [one.name for one in self.comparisons]
        lines = [line_of(["images", "measured by", *names]), line_of(["---"] * 2 + ["---:"] * len(names))]
        for images in IMAGES:
            for measured in self.measures:
                found = [one.found(measured, images, section_of) for one in self.comparisons]
                if any(one and one.count >= CLAIM_SEEDS for one in found):
                    lines.append(line_of([images, measured.name, *map(shown, found)]))
        return f"{self.lead}\n\n" + "\n".join(lines) + "\n"


def shown(found: Estimate | None) -> str:
    """Return a difference with its number of seeds."""
    return f"{difference(found, found.count)} ({found.count})" if found else ""


SLOTCON_GAIN = Comparison("SlotCon", SLOTCON_CONTINUED, IMAGENET)
DECON_GAIN = Comparison("DeCon", CONTINUED, IMAGENET)
TARGETS_GAIN = Comparison("encoder targets", TARGETS_LONGER, IMAGENET)
DECON_OVER_BASE = Comparison("DeCon over SlotCon, equal steps", CONTINUED, SLOTCON_CONTINUED)
DECON_OVER_BASE_LONGER = Comparison("DeCon over SlotCon with twice the steps", CONTINUED, SLOTCON_CONTINUED_LONGER)

FROZEN = Measured(
    "frozen decoder, 64 labelled images, mIoU",
    {SCENES: (Source("starts-maps", "tabletop-again", 64),), CUTOUTS: (Source("maps", "stamps", 64),)},
    tap="decoder linear",
)
TUNED = Measured(
    "fine-tuned, 20 labelled images, mIoU",
    {SCENES: (Source("starts", "tabletop-again", 0.05),), CUTOUTS: (Source("methods", "stamps", 0.05),)},
)
TUNED_RATE = Measured(
    "fine-tuned at a rate chosen for each start, 20 labelled images, mIoU",
    {SCENES: (Source("shares", "tabletop-fourth-rates", 0.05),)},
)
UNET_RATE = Measured(
    TUNED_RATE.name.replace("fine-tuned", "Unet, fine-tuned"),
    {SCENES: (Source("unet", "tabletop-fourth", 0.05),)},
    network=", Unet",
)
BOXES = Measured(
    "fine-tuned for 800 steps, 400 labelled images, box AP",
    {SCENES: (Source("detect", "tabletop-boxes", 1.0),), CUTOUTS: (Source("detect", "stamps-boxes", 1.0),)},
    score="box AP",
    network=", Mask R-CNN",
)
LONG = tuple(Source("detect", name, 1.0) for name in ("tabletop-boxes-longer", "tabletop-third-boxes-longer"))
BOXES_LONGER = replace(BOXES, name=BOXES.name.replace("800", "1,600"), sources={SCENES: LONG})
MASKS, MASKS_LONGER = (
    replace(one, name=one.name.replace("box", "mask"), score="mask AP") for one in (BOXES, BOXES_LONGER)
)
TOKENS, TOKENS_TENTH = (
    Measured(f"fine-tuned, {labels} labelled images, mIoU", {TEXTURES: (Source("scenes", "tokens", part),)})
    for part, labels in ((0.05, 20), (0.1, 40))
)
TABLES: tuple[Gains, ...] = (
    Gains(
        "Gains in points, over ImageNet weights with a random decoder and of DeCon over SlotCon:",
        (SLOTCON_GAIN, DECON_GAIN, TARGETS_GAIN, DECON_OVER_BASE, DECON_OVER_BASE_LONGER),
        (FROZEN, TUNED, TUNED_RATE, UNET_RATE, BOXES, MASKS, BOXES_LONGER, MASKS_LONGER),
    ),
    Gains(
        "Gains in points of ADCLR over DINO, with a small ViT that starts from random weights:",
        (
            Comparison("ADCLR over DINO, equal steps", ADCLR, DINO),
            Comparison("ADCLR over DINO with 1.3 times the steps", ADCLR, DINO_LONGER),
        ),
        (TOKENS, TOKENS_TENTH),
    ),
)


def summary(section_of: SectionOf) -> str:
    """Return the tables."""
    return "\n".join(table.text(section_of) for table in TABLES)


def update_summary(page: Path, section_of: SectionOf) -> bool:
    """Bring the tables at the top of a page up to date; return whether anything changed."""
    return rewrite(page, BLOCK, lambda _: f"<!-- summary -->\n{summary(section_of)}<!-- end -->")
