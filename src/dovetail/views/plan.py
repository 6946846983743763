"""The views of a recipe as plain data: one `ViewSpec` per view, in order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from dovetail.errors import RecipeError
from dovetail.sizes import Size, as_size, sides
from dovetail.views.view import Role

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Photometric:
    """Photometric augmentation, drawn per image, with the strengths of torchvision's ColorJitter."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    solarise_p: float = 0.0
    solarise_threshold: int = 128


@dataclass(frozen=True)
class ViewSpec:
    """One view: a random resized crop, a flip, photometrics.

    Attributes:
        size_px: Side of a square view, or (height, width), in pixels. Equal sides become one number.
        scale: Fraction of the image's area in the crop.
        ratio: Width divided by height of the crop, relative to that of the view: the range of the factor by which
            resizing stretches the image. For a view of 64 x 128 pixels, crops are 1.5 to 2.67 times as wide as high by
            default.
        interpolation: Filter of the resizing.
        flip_p: Probability of mirroring left to right.
        photometric: Photometric augmentation.
        role: "global" or "local".
    """

    size_px: Size = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    flip_p: float = 0.5
    photometric: Photometric = field(default_factory=Photometric)
    role: Role = "global"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_px", as_size(self.size_px, "size_px"))

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return sides(self.size_px)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        height, width = self.sides
        return height * width

    @property
    def crop_ratio(self) -> tuple[float, float]:
        """The range of width divided by height of the crop, in pixels of the image."""
        height, width = self.sides
        return self.ratio[0] * (width / height), self.ratio[1] * (width / height)


@dataclass(frozen=True)
class QuerySpec:
    """Query crops: `count` crops of the image, each resized to one or more patches of the ViT (ADCLR, PQCL).

    They are square, like patches, for views of any shape.
    """

    count: int = 10
    size_px: int = 16
    scale: tuple[float, float] = (0.05, 0.25)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    photometric: Photometric = field(default_factory=Photometric)
    independent: bool = False  # draw photometrics separately for every global view


@dataclass(frozen=True)
class MaskSpec:
    """iBOT's masks on global views: a fraction of patches in blocks, or no mask, drawn per image and view.

    There are no masks before epoch `start_epoch`.
    """

    patch_px: int = 16
    share: tuple[float, float] = (0.1, 0.5)
    p: float = 0.5
    shape: Literal["block", "random"] = "block"
    start_epoch: int = 0


@dataclass(frozen=True)
class PointSpec:
    """Points at which a term's maps are sampled, drawn per image and epoch.

    Attributes:
        count: Number of points per global view, at least 1.
        region: "overlap" draws points uniformly in the overlap of all global views, the same for all of them; without
            an overlap, each view has its own points. "view" draws separate points uniformly in each view's crop.
        margin: Minimum distance of points from each edge, as a fraction of a view's side, in [0, 0.5).
    """

    count: int = 196
    region: Literal["overlap", "view"] = "overlap"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RecipeError(f"The number of points is {self.count}; it must be at least 1.")
        if not 0 <= self.margin < 0.5:
            raise RecipeError(f"The margin is {self.margin:g} of a view's side; it must be at least 0 and below 0.5.")


@dataclass(frozen=True)
class SegmentSpec:
    """Segments of the images (DetCon). Each view has its crop of the label map, and random picks of segments.

    The other attributes only apply if the segments are computed (`--masks felzenszwalb`). They are those of
    Felzenszwalb and Huttenlocher's algorithm (2004), for an image reduced to `side_px`.

    Attributes:
        count: Number of segments to sample in each view, with replacement.
        scale: Preference for large segments: k in the threshold k / |C| of a segment with |C| pixels.
        min_px: Minimum number of pixels of a segment.
        side_px: Side length to which the longer side of an image is reduced first; smaller images are unchanged.
    """

    count: int = 16
    scale: float = 1000.0
    min_px: int = 1000
    side_px: int = 512

    def __post_init__(self) -> None:
        if min(self.count, self.min_px, self.side_px) < 1 or not self.scale > 0:
            raise RecipeError(
                f"Segments have count {self.count}, scale {self.scale:g}, min_px {self.min_px} and side_px "
                f"{self.side_px}; all of them must be above 0."
            )


@dataclass(frozen=True)
class ViewPlan:
    """All the views of one image in one step; global views first.

    With `min_overlap`, the second view is drawn again, up to `overlap_tries` times, until it shares at least this
    fraction of its target area with the first view; the last try is always accepted (SlotCon: 0.01 and 10 tries). 0
    disables it.

    `side` names side data that the objectives need: "index" is the index of each image in the dataset, and other names
    are keys in the items of the dataset. `segments` requires masks of the images.
    """

    views: tuple[ViewSpec, ...]
    min_overlap: float = 0.0
    overlap_tries: int = 10
    queries: QuerySpec | None = None
    masks: MaskSpec | None = None
    points: PointSpec | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    segments: SegmentSpec | None = None
    side: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        roles = [view.role for view in self.views]
        if roles != sorted(roles):  # "global" < "local"
            raise RecipeError("The plan has a local view before a global view; put the global views first.")

    def without_side(self) -> ViewPlan:
        """Return the plan without segments and side data. Its views have the same pixels."""
        return replace(self, segments=None, side=())
