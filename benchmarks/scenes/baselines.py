"""What two cues alone give, with nothing learned but how often each class shows them: the floor under every score.

`colour` is the mean colour of a few pixels in one of 512 bins; `edges` is how strong brightness changes at two scales,
64 bins. Each pixel takes the class whose training histogram fits the bins around it best; how much the classes' own
frequencies count is chosen on the training images.

Shapes: H x W pixels, K classes, N bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.downstream.labels.labelled import Labelled
from dovetail.downstream.segment.metrics import ConfusionMatrix, SegmentationScores

WINDOW_PX = 15
PRIORS = (0.0, 0.5, 1.0)
Cue = tuple[Callable[[Tensor], Tensor], int]


def colour_bins(image: Tensor) -> Tensor:
    """Return [H, W] the bin of the mean colour of 5 x 5 pixels of an image [3, H, W] uint8."""
    levels = (mean_around(image.float(), 5) / 32).long().clamp(0, 7)
    return levels[0] * 64 + levels[1] * 8 + levels[2]


def edge_bins(image: Tensor) -> Tensor:
    """Return [H, W] the bin of the slope of brightness over 1 and over 4 pixels of an image [3, H, W] uint8."""
    grey = image.float().mean(0, keepdim=True)
    slopes = [slope(grey), slope(mean_around(grey, 7))]
    fine, coarse = (
        torch.log2(one / scale + 1).long().clamp(0, 7) for one, scale in zip(slopes, (2.0, 0.5), strict=True)
    )
    return fine * 8 + coarse


CUES: Mapping[str, Cue] = {"colour": (colour_bins, 512), "edges": (edge_bins, 64)}


def slope(grey: Tensor) -> Tensor:
    """Return [H, W] the size of the gradient of [1, H, W]."""
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")[0]
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    return torch.hypot(across, down) / 2


def mean_around(values: Tensor, window: int) -> Tensor:
    """Return [C, H, W] the mean over a square around each pixel, of what lies within the image."""
    return F.avg_pool2d(values[None], window, stride=1, padding=window // 2, count_include_pad=False)[0]


def baseline(cue: str, train: Sequence[Labelled], test: Sequence[Labelled], *, classes: int) -> SegmentationScores:
    """Return the scores of a cue, fitted on `train`, on `test`."""
    bins_of, bins = CUES[cue]
    counts = torch.zeros(bins, classes)
    for item in train:
        kept = (item.mask >= 0) & (item.mask < classes)
        places = bins_of(item.image)[kept] * classes + item.mask[kept]
        counts += torch.bincount(places, minlength=bins * classes).view(bins, classes)
    share = (counts + 1) / (counts + 1).sum(0)
    prior = counts.sum(0).clamp(min=1)
    tables = [(share.log(), power * (prior / prior.sum()).log()) for power in PRIORS]
    best = max(tables, key=lambda table: scored(bins_of, table, train, classes).miou)
    return scored(bins_of, best, test, classes)


def scored(
    bins_of: Callable[[Tensor], Tensor], table: tuple[Tensor, Tensor], items: Sequence[Labelled], classes: int
) -> SegmentationScores:
    """Return the scores of log-likelihoods [N, K] and log-priors [K]."""
    likelihood, prior = table
    matrix = ConfusionMatrix(classes)
    for item in items:
        evidence = mean_around(likelihood[bins_of(item.image)].permute(2, 0, 1), WINDOW_PX)
        matrix.add((evidence + prior.view(-1, 1, 1)).argmax(0), item.mask)
    return matrix.scores()


def background_alone(test: Sequence[Labelled], *, classes: int) -> SegmentationScores:
    """Return the scores of calling everything background."""
    matrix = ConfusionMatrix(classes)
    for item in test:
        matrix.add(torch.zeros_like(item.mask), item.mask)
    return matrix.scores()
