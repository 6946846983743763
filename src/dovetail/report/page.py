"""`report.html`: a self-contained report page of a run.

Jinja2 escapes all text. Only the plots are inserted as markup, and Matplotlib escapes their text. A content security
policy forbids the page to load anything.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup
from torch import Tensor

from dovetail.data.isolated import run_isolated
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.reading.skipped import unreadable_in
from dovetail.data.sources import ImageSource
from dovetail.errors import DovetailError, counted
from dovetail.networks.network import Network
from dovetail.networks.probe import check_image_size
from dovetail.recipe import Recipe
from dovetail.report.features import ColouredMaps, coloured, maps_of, shown_taps
from dovetail.report.history import History, Series, read_history
from dovetail.report.machine import machine, versions
from dovetail.report.pixels import Rgb, as_view, central_crops, jpeg_uri, png_uri, shown
from dovetail.report.plots import Plot, draw
from dovetail.report.sample import NUM_IMAGES, Example, draw_sample, overlap_in_words
from dovetail.report.templating import filled, replace_file
from dovetail.run.options import PretrainOptions
from dovetail.run.resolve import kept_options
from dovetail.sizes import Size, size_in_words, times
from dovetail.train.monitors import MAX_POSITION, MIN_RANK, MIN_SPREAD, MIN_WITHIN

if TYPE_CHECKING:
    from dovetail.report.extras import Extra

PAGE = "report.html"
SAMPLE_SECONDS = 60.0
PX_PER_INCH = 110  # resolution of sheets on a wide screen

log = logging.getLogger(__name__)

State = Literal["running", "finished", "stopped"]


@dataclass(frozen=True)
class Subject:
    """The run that a page describes.

    Attributes:
        folder: Run folder.
        options: Resolved options of `pretrain`.
        recipe: Recipe of the run.
        recipe_text: The recipe as plain-text tables.
        source: Image source.
        total_steps: Optimiser steps of the whole run.
        loading: Python code that loads the weights.
        measuring: Command that measures the gain.
    """

    folder: Path
    options: PretrainOptions
    recipe: Recipe
    recipe_text: str
    source: ImageSource
    total_steps: int
    loading: str
    measuring: str


@dataclass
class Page:
    """The page of a run, which is updated repeatedly. Constant parts are computed once.

    `before` has the coloured maps of the network before pre-training, by tap.
    """

    subject: Subject
    examples: list[Example]
    images: list[Tensor]
    names: list[str]
    taps: list[str]
    before: dict[str, ColouredMaps]
    began: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @classmethod
    def prepare(cls, subject: Subject, network: Network) -> Page:
        """Prepare the page before the run starts, with the feature maps of the network before pre-training."""
        in_channels = network.in_channels
        size_px = picture_size(network, subject.recipe.views.views[0].size_px)
        examples, names, images = sampled(subject, in_channels=in_channels, size_px=size_px)
        taps = shown_taps(network.taps, subject.recipe) if images else []
        page = cls(subject, examples, images, names, taps, {})
        page.before = page.coloured_maps(network)
        return page

    def coloured_maps(self, network: Network) -> dict[str, ColouredMaps]:
        """Return the coloured maps of the sample images, by tap."""
        if not self.taps:
            return {}
        view = as_view(self.images, self.subject.recipe.views, network)
        return {tap: coloured(maps) for tap, maps in maps_of(network, view, self.taps).items()}

    def write(
        self, network: Network, *, state: State, step: int | None = None, extras: Sequence[Extra] = ()
    ) -> dict[str, ColouredMaps]:
        """Write the page atomically, and return the coloured maps of `network`.

        `step` is the number of finished steps, by default that of the last reading. `extras` are further sections (see
        `dovetail.report.extras`).
        """
        after = self.coloured_maps(network)
        text = self.render(after, network, state=state, step=step, extras=extras)
        replace_file(self.subject.folder / PAGE, text)
        return after

    def render(
        self,
        after: Mapping[str, ColouredMaps],
        network: Network,
        *,
        state: State,
        step: int | None = None,
        extras: Sequence[Extra] = (),
    ) -> str:
        """Return the HTML of the page."""
        subject, history = self.subject, read_history(self.subject.folder)
        taps = taps_in_use(subject.recipe)
        prototypes = history.prototype_verdicts(subject.total_steps)
        contents = history.content_verdicts(subject.total_steps)
        return filled(
            "report.html.j2",
            title=f"{subject.options.method} on {model_name(subject.options)}",
            state=state,
            written=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
            step=history.last.get("step", 0) if step is None else step,
            total_steps=subject.total_steps,
            facts=facts(subject, history, network, state),
            verdicts=[*history.verdicts(taps), *contents, *prototypes],
            contents=bool(contents),
            prototypes=bool(prototypes),
            plots=[(plot.title, Markup(draw(plot, name=f"plot{i}"))) for i, plot in enumerate(plots(history, taps))],
            examples=self.examples,
            overlap_words=overlap_in_words(subject.recipe),
            maps=[map_row(tap, self.before.get(tap), after[tap], network, subject.options) for tap in after],
            images=[jpeg_uri(shown(one)) for one in self.images],
            shape="{2} / {1}".format(*self.images[0].shape) if self.images else "1",
            extras=[section(extra) for extra in extras],
            loading=subject.loading,
            measuring=subject.measuring,
            options={name: words_of(value) for name, value in kept_options(subject.options).items()},
            recipe_text=subject.recipe_text,
        )


def sampled(subject: Subject, *, in_channels: int, size_px: Size) -> tuple[list[Example], list[str], list[Tensor]]:
    """Return sample views, and names and crops of sample images, or nothing if reading an image hangs or crashes."""
    seed = int(subject.options.seed)
    read = partial(_read_sample, subject.source, subject.recipe, seed, in_channels, size_px)
    try:
        return run_isolated(read, seconds=SAMPLE_SECONDS)
    except UnreadableError as error:
        log.warning("The report page has no images: %s.", error)
        return [], [], []


def _read_sample(
    source: ImageSource, recipe: Recipe, seed: int, in_channels: int, size_px: Size
) -> tuple[list[Example], list[str], list[Tensor]]:
    examples = draw_sample(source, recipe, seed=seed, in_channels=in_channels)
    return examples, *central_crops(source, count=NUM_IMAGES, size_px=size_px, channels=in_channels)


def picture_size(network: Network, size_px: Size) -> Size:
    """Return the image size for feature maps: twice the view size if the network supports it, for finer maps.

    ViTs use the view size, which their position embeddings are trained for.
    """
    if any(tap.kind == "tokens" for tap in network.taps.values()):
        return size_px
    try:
        twice = times(size_px, 2)
        check_image_size(network, twice, taps=[name for name, tap in network.taps.items() if tap.kind == "map"])
    except DovetailError:
        return size_px
    return twice


def taps_in_use(recipe: Recipe) -> list[str]:
    """Return the taps of a recipe's terms without duplicates."""
    return list(dict.fromkeys(term.tap for term in recipe.terms))


def model_name(options: PretrainOptions) -> str:
    """Return the name of the model. A module that was passed in Python is named by its class."""
    model = options.model
    return model if isinstance(model, str) else type(model).__name__


def facts(subject: Subject, history: History, network: Network, state: State) -> dict[str, str]:
    """Return a description of the run."""
    options, source = subject.options, subject.source
    millions = sum(value.numel() for value in network.parameters()) / 1e6
    data = options.data
    skipped = history.last.get("skipped_steps", 0)
    roots = data if isinstance(data, list) else [data]
    paths = ", ".join(os.fspath(one) for one in roots if isinstance(one, str | os.PathLike))
    named = paths if 0 < len(paths) < 500 else type(data).__name__
    return {
        "model": f"{model_name(options)}, {millions:.1f} million parameters",
        "method": f"{options.method}: {', '.join(f'{one.name} on {one.tap}' for one in subject.recipe.terms)}",
        "data": f"{named}, {counted(source.num_images, 'image')}, {unreadable(subject.folder, state)}",
        "views": views_in_words(subject.recipe),
        "length": length_in_words(subject),
        "speed": speed_in_words(history, subject),
        **({"skipped": f"{counted(skipped, 'step')} with NaN or infinite values"} if skipped else {}),
        "folder": str(subject.folder),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "machine": machine(str(options.accelerator), str(options.precision)),
    }


def unreadable(folder: Path, state: State) -> str:
    """Return a phrase about unreadable images."""
    count = len(unreadable_in(folder / "skipped.jsonl"))
    if count:
        return f"{count} unreadable (see skipped.jsonl)"
    return "none unreadable" if state == "finished" else "none unreadable so far"


def views_in_words(recipe: Recipe) -> str:
    """Return a phrase such as "2 global of 224 px, 10 query crops of 16 px"."""
    kinds: dict[tuple[str, Size], int] = {}
    for view in recipe.views.views:
        kinds[view.role, view.size_px] = kinds.get((view.role, view.size_px), 0) + 1
    parts = [f"{count} {role} of {size_in_words(size)} px" for (role, size), count in kinds.items()]
    if recipe.views.queries is not None:
        parts.append(f"{counted(recipe.views.queries.count, 'query crop')} of {recipe.views.queries.size_px} px")
    return ", ".join(parts)


def images_per_step(options: PretrainOptions) -> int:
    """Return the images of one optimiser step, over all devices."""
    return int(options.batch_size) * options.accumulate * int(options.devices) * options.num_nodes


def length_in_words(subject: Subject) -> str:
    """Return the length of the run, in steps and epochs."""
    options, images = subject.options, images_per_step(subject.options)
    passes = subject.total_steps * images / subject.source.num_images
    words = f"{subject.total_steps:,} optimiser steps of {images:,} images, {passes:,.1f} epochs"
    parts = (
        (options.accumulate, "micro-batches per step"),
        (int(options.devices), "devices"),
        (options.num_nodes, "nodes"),
    )
    return ", ".join([words, *(f"{count} {what}" for count, what in parts if count > 1)])


def speed_in_words(history: History, subject: Subject) -> str:
    """Return the latest speed and the estimated remaining time."""
    last = history.last
    if not last:
        return "no reading yet"
    rate = last["images_per_second"]
    words = f"{rate:.1f} images per second, {last['data_wait']:.0%} of the time waiting for data"
    steps_left = subject.total_steps - last["step"]
    left = timedelta(seconds=round(steps_left * images_per_step(subject.options) / max(rate, 1e-9)))
    return f"{words}, about {left} left" if steps_left > 0 else words


def plots(history: History, taps: Sequence[str]) -> list[Plot]:
    """Return the plots of the page: losses of all terms, schedules and monitors. `taps` determines the colours."""
    found: dict[str, list[Any]] = {}
    for series in history.group("parts"):
        term, _, part = series.name.partition("/")
        found.setdefault(term, []).append(type(series)(part, series.steps, series.values))
    watched = ("effective_rank", "spread", "within_image_share", "position_share")
    ranks, spreads, withins, positions = (in_order(history.group(field), taps) for field in watched)
    shown_plots = [Plot("Loss (weighted sum of all terms)", "loss (no unit)", [history.number("loss")])]
    shown_plots += [Plot(f"Term {term} (unweighted)", "loss (no unit)", lines) for term, lines in found.items()]
    shown_plots += [
        Plot("Learning rate", "learning rate (no unit)", [history.number("lr")], from_zero=True),
        Plot("Teacher momentum", "momentum (0 to 1)", [history.number("teacher_momentum")]),
        Plot("Term weights", "weight (no unit)", history.group("weights"), from_zero=True),
        Plot("Gradient norm", "norm (no unit)", [history.number("grad_norm")], logarithmic=True),
        Plot("Speed", "images per second", [history.number("images_per_second")], from_zero=True),
        Plot("Waiting for data", "fraction of time (0 to 1)", [history.number("data_wait")], from_zero=True),
        Plot("kNN accuracy of the frozen encoder", "accuracy (0 to 1)", [history.number("knn")], from_zero=True),
        Plot("mIoU of frozen feature maps", "mIoU (0 to 1)", history.group("dense"), from_zero=True),
        Plot("Effective rank", "rank (dimensions)", ranks, from_zero=True, lower=MIN_RANK),
        Plot("Spread (0: one point, 1: even)", "spread (0 to 1)", spreads, from_zero=True, lower=MIN_SPREAD),
        Plot("Within-image share", "fraction of variance (0 to 1)", withins, from_zero=True, lower=MIN_WITHIN),
        Plot("Position share", "share within images (0 to 1)", positions, from_zero=True, upper=MAX_POSITION),
        Plot("Effective prototypes", "prototypes (number)", history.group("prototypes_used"), from_zero=True),
        Plot("Teacher entropy", "share of maximum (0 to 1)", history.group("teacher_entropy"), from_zero=True),
    ]
    return [plot for plot in shown_plots if any(line.values for line in plot.lines)]


def in_order(lines: Sequence[Series], names: Sequence[str]) -> list[Series]:
    """Sort lines in the order of `names`, others last, so that a name has the same colour in all plots."""
    return sorted(lines, key=lambda line: names.index(line.name) if line.name in names else len(names))


def section(extra: Extra) -> dict[str, Any]:
    """Return the content of an optional section."""
    svgs = []
    for name, sheet in extra.sheets.items():
        title = sheet.title.get_text()
        svg = sheet.inline(name=f"{extra.id}-{name}", label=title)
        svgs.append((title, Markup(svg), round(PX_PER_INCH * sheet.figure.get_figwidth())))
    return {"id": extra.id, "title": extra.title, "words": extra.words, "svgs": svgs}


def map_row(
    tap: str, before: ColouredMaps | None, after: ColouredMaps, network: Network, options: PretrainOptions
) -> dict[str, Any]:
    """Return the description of a tap, and data URIs of its coloured maps before and after pre-training.

    Equal maps are only shown once, and "unchanged" says why they are equal.
    """
    about = network.taps[tap]
    same = before is not None and np.array_equal(before.pictures, after.pictures)
    frozen = about.part == "encoder" and options.freeze_encoder_epochs not in (0, "auto")
    return {
        "tap": tap,
        "part": about.part,
        "words": f"{about.channels} channels, stride {about.stride} px",
        "before": _uris(before.pictures) if before else [],
        "before_share": before.share if before else 0.0,
        "after": [] if same else _uris(after.pictures),
        "unchanged": "because the encoder is frozen" if frozen else "as the steps changed them too little",
        "after_share": after.share,
    }


def _uris(pictures: Sequence[Rgb]) -> list[str]:
    return [png_uri(picture) for picture in pictures]


def words_of(value: Any) -> str:
    """Return an option's value as short text."""
    if value is None:
        return "none"
    if isinstance(value, str | int | float | os.PathLike):
        return str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={words_of(one)}" for name, one in value.items()) or "as published"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(words_of, value))})"
    return type(value).__name__
