"""Does colour alone tell the classes? The class of an object's crop by its five nearest neighbours' vote.

Crops of the same object and of the same image do not vote, so that what is told is the class and neither the object nor
the light. Three descriptions are compared: a histogram of the object's colours, features of EfficientNet-Lite0 with
random weights, and features with ImageNet weights. A set in which colour does no better than random features, and
ImageNet features do far better, is one where objects have to be recognised.

Shapes: N crops, D features, C x C pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.scenes.stock import Split
from benchmarks.scenes.tabletop.frames import frames_ready, read_frame, seen_objects
from dovetail.errors import DovetailError
from dovetail.networks.lite0 import MEAN, NAME, PACKAGE, STD, packaged_weights

CROP_PX = 96
MARGIN = 0.1  # of a box's longer side, around it
LEAST_PX = 12  # longer side of the smallest object that counts
BINS = 6  # of each colour
NEIGHBOURS = 5
MOST = 400  # scenes of a split


@dataclass(frozen=True)
class Crops:
    """Objects cut out of scenes.

    Attributes:
        pixels: [N, 3, C, C] uint8, squares around the objects.
        colours: [N, BINS ** 3] share of an object's pixels in each bin of colour.
        labels: [N] class.
        assets: [N] number of the object that is shown.
        images: [N] number of the scene.
    """

    pixels: Tensor
    colours: Tensor
    labels: Tensor
    assets: Tensor
    images: Tensor


def cut(frames: Path, scenes: Sequence[tuple[Split, int]]) -> Crops:
    """Return the objects of some rendered scenes, each a split and an index."""
    pixels, colours, labels, assets, images = [], [], [], [], []
    names: dict[str, int] = {}
    for place, (split, index) in enumerate(scenes):
        scene = read_frame(frames, split, index)
        picture = Image.fromarray(scene.pixels)
        for number, one in enumerate(seen_objects(frames, split, index), start=1):
            own = scene.owners == number
            rows, columns = np.nonzero(own)
            side = max(np.ptp(rows), np.ptp(columns)) + 1
            if side < LEAST_PX:
                continue
            half = (0.5 + MARGIN) * side
            middle_x, middle_y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
            box = (middle_x - half, middle_y - half, middle_x + half, middle_y + half)
            crop = picture.transform((CROP_PX, CROP_PX), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
            pixels.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
            colours.append(histogram(torch.from_numpy(scene.pixels[own])))
            labels.append(scene.labels[number - 1])
            assets.append(names.setdefault(one["asset"], len(names)))
            images.append(place)
    if not labels:
        raise DovetailError(
            f"{frames} contains no {split} scenes; render some with `python -m benchmarks.scenes tabletop`."
        )
    return Crops(torch.stack(pixels), torch.stack(colours), *map(torch.tensor, (labels, assets, images)))


def histogram(colours: Tensor) -> Tensor:
    """Return [BINS ** 3] the share of colours [M, 3] uint8 in each bin."""
    levels = (colours.long() * BINS) // 256
    counts = torch.bincount((levels[:, 0] * BINS + levels[:, 1]) * BINS + levels[:, 2], minlength=BINS**3)
    return counts / counts.sum()


@torch.no_grad()
def features(pixels: Tensor, weights: Mapping[str, Tensor] | None) -> Tensor:
    """Return [N, D] pooled features of length 1 of EfficientNet-Lite0; random weights of seed 0 for None."""
    torch.manual_seed(0)
    network = timm.create_model(NAME).eval()
    if weights is not None:
        network.load_state_dict(weights)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    pooled = [network.forward_features((part.float() / 255 - mean) / std).mean((2, 3)) for part in pixels.split(64)]
    return F.normalize(torch.cat(pooled), dim=1)


def vote(likeness: Tensor, crops: Crops) -> float:
    """Return the share of crops that their nearest neighbours name rightly; `likeness` is [N, N]."""
    same = (crops.assets[:, None] == crops.assets) | (crops.images[:, None] == crops.images)
    nearest = likeness.masked_fill(same, -torch.inf).topk(min(NEIGHBOURS, len(likeness)), dim=1)
    votes = F.one_hot(crops.labels[nearest.indices], int(crops.labels.max()) + 1).float()
    votes = votes * nearest.values.isfinite()[..., None]
    # Of classes with equally many votes the one with the nearest neighbour wins.
    order = torch.linspace(1.0, 0.9, votes.shape[1]).view(1, -1, 1)
    return float(((votes * order).sum(1).argmax(1) == crops.labels).float().mean())


def table(crops: Crops) -> dict[str, float]:
    """Return the share of crops named rightly by each description, and by always naming the commonest class."""
    weights = packaged_weights()
    if weights is None:
        raise DovetailError(f"The package {PACKAGE} with the ImageNet weights is not installed; install it with pip.")
    overlap = 1 - torch.cdist(crops.colours, crops.colours, p=1) / 2
    shares = {"the commonest class": float(torch.bincount(crops.labels).max() / len(crops.labels))}
    shares["colour histogram"] = vote(overlap, crops)
    for name, own in (("Lite0, random weights", None), ("Lite0, ImageNet weights", weights)):
        described = features(crops.pixels, own)
        shares[name] = vote(described @ described.T, crops)
    return shares


def write_table(frames: Path, out: Path) -> None:
    """Measure on the rendered scenes of the training objects and write a page."""
    ready = frames_ready(frames)
    splits: tuple[Split, ...] = ("train", "unlabelled")
    scenes = [(split, index) for split in splits for index in range(min(ready[split], MOST))]
    crops = cut(frames, scenes)
    lines = [
        "# Does colour tell the classes of `tabletop`?",
        "",
        f"The class of {len(crops.labels)} objects in {len(scenes)} scenes, by the vote of their {NEIGHBOURS} nearest",
        "neighbours. Crops of the same object or of the same image do not vote. Made by",
        "`python -m benchmarks.scenes.tabletop --neighbours`.",
        "",
        "| description | right, % |",
        "|---|---|",
        *(f"| {name} | {100 * share:.1f} |" for name, share in table(crops).items()),
        "",
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines), encoding="utf-8")
