"""Sample views of a run and their positions in the source images.

Views are a pure function of (seed, epoch, image). Boxes are in [0, 1] of the image that they are drawn on, with x to
the right and y down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from dovetail.data.loader import ViewDataset
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.sources import ImageSource
from dovetail.objectives.slots import SlotSpec
from dovetail.recipe import Recipe
from dovetail.report.pixels import jpeg_uri, shown, thumbnail, unnormalised
from dovetail.views.batch import collate, to_views
from dovetail.views.view import View, overlap_box, overlaps

NUM_IMAGES = 3
LONGEST_PX = 420
# Colours of consecutive views. They are the same in light and dark mode, since they are drawn on images.
BOX_COLOURS = ("#56b4e9", "#e69f00", "#2fc799", "#e79cc6", "#f0e442", "#ff8a3d")

Kind = Literal["global", "local", "overlap", "query"]


class Box(NamedTuple):
    """A rectangle on an image."""

    kind: Kind
    number: int
    label: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, with its display size, alternative text, and boxes to draw on it."""

    uri: str
    width: int
    height: int
    alt: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Example:
    """An image with its views, and the query patches of its first view if there are any.

    `overlap` is the fraction of view 1 that view 2 overlaps, if the recipe aligns them and they overlap.
    """

    name: str
    source: Picture
    views: tuple[Picture, ...]
    overlap: float | None
    query_source: Picture | None
    queries: tuple[Picture, ...]


def draw_sample(
    source: ImageSource, recipe: Recipe, *, seed: int, in_channels: int, count: int = NUM_IMAGES
) -> list[Example]:
    """Return the views of the first `count` readable images of the first epoch, as the run sees them."""
    dataset = ViewDataset(source, recipe.views.without_side(), seed=seed, in_channels=in_channels)
    examples: list[Example] = []
    for index in source.order(seed=seed, epoch=0)[: 8 * count]:
        sample = dataset[(0, int(index))]
        if sample.used < 0:
            continue
        try:
            picture = thumbnail(source.open(sample.used, in_channels), LONGEST_PX)
        except UnreadableError:
            continue
        views = to_views(collate([sample]), recipe.views.without_side())
        name = source.name(sample.used)
        enlarged = LONGEST_PX / max(picture.shape)  # boxes and numbers have the same size on small images
        height, width = (round(side * enlarged) for side in picture.shape[:2])
        plain = Picture(jpeg_uri(picture), width, height, f"Image {name}")
        pair = _first_pair(views) if slot_terms(recipe) else None
        on_source = replace(plain, boxes=tuple(_view_boxes(views, pair)), alt=f"{plain.alt} with the views' boxes")
        queries = _query_boxes(views[0])
        examples.append(
            Example(
                name,
                on_source,
                _pictures(views, pair, recipe),
                _common(pair),
                replace(plain, boxes=tuple(queries), alt=f"{plain.alt} with the query patches") if queries else None,
                _queries(views[0], recipe),
            )
        )
        if len(examples) == count:
            break
    return examples


def _corners(corners: Tensor) -> tuple[float, float, float, float]:
    """Convert (x1, y1, x2, y2) to (left, top, width, height)."""
    left, top, right, bottom = (round(float(value), 4) for value in corners)
    return left, top, round(right - left, 4), round(bottom - top, 4)


def _view_boxes(views: list[View], pair: tuple[View, View] | None) -> list[Box]:
    boxes = [
        Box(view.role, number, f"view {number}", *_corners(view.box[0])) for number, view in enumerate(views, start=1)
    ]
    if pair is None:
        return boxes
    low = pair[0].box[0, :2].maximum(pair[1].box[0, :2])
    high = pair[0].box[0, 2:].minimum(pair[1].box[0, 2:])
    left, top, width, height = *low.tolist(), *(high - low).tolist()
    return [Box("overlap", 0, "overlap of views 1 and 2", left, top, width, height), *boxes]


def _query_boxes(view: View) -> list[Box]:
    if view.query_box is None:
        return []
    return [
        Box("query", number, f"query {number}", *_corners(corners))
        for number, corners in enumerate(view.query_box[0], start=1)
    ]


def _first_pair(views: list[View]) -> tuple[View, View] | None:
    """Return the first two global views if they overlap, else None."""
    if len(views) < 2 or views[1].role != "global" or not bool(overlaps(overlap_box(views[0], views[1]))):
        return None
    return views[0], views[1]


def _common(pair: tuple[View, View] | None) -> float | None:
    """Return the area of the overlap relative to the first view."""
    if pair is None:
        return None
    _, _, width, height = _corners(overlap_box(*pair)[0])
    return width * height


def _pictures(views: list[View], pair: tuple[View, View] | None, recipe: Recipe) -> tuple[Picture, ...]:
    pictures = []
    for number, view in enumerate(views, start=1):
        boxes: tuple[Box, ...] = ()
        if pair is not None and number <= 2:
            corners = overlap_box(pair[number - 1], pair[2 - number])[0]
            boxes = (Box("overlap", 0, "overlap", *_corners(corners)),)
        pixels = shown(unnormalised(view.pixels[0], recipe.views))
        words = f"View {number}, {view.role}{', mirrored' if bool(view.flipped[0]) else ''}"
        pictures.append(Picture(jpeg_uri(pixels), pixels.shape[1], pixels.shape[0], words, boxes))
    return tuple(pictures)


def _queries(view: View, recipe: Recipe) -> tuple[Picture, ...]:
    if view.queries is None:
        return ()
    patches = [shown(patch) for patch in unnormalised(view.queries[0], recipe.views)]
    return tuple(
        Picture(jpeg_uri(patch), patch.shape[1], patch.shape[0], f"Query patch {number}")
        for number, patch in enumerate(patches, start=1)
    )


def overlap_in_words(recipe: Recipe) -> str:
    """Return an explanation of the hatched overlap for this recipe, or an empty string."""
    terms = slot_terms(recipe)
    if not terms:
        return ""
    named = "term " + terms[0] if len(terms) == 1 else "terms " + ", ".join(terms)
    return (
        f"The hatched area is the overlap of views 1 and 2. SlotCon ({named}) resamples the feature maps of both views "
        "to it, undoes flips, and compares them cell by cell."
    )


def slot_terms(recipe: Recipe) -> list[str]:
    """Return the names of the terms that align views on their overlap."""
    return [term.name for term in recipe.terms if isinstance(term.objective, SlotSpec)]
