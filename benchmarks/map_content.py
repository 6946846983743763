"""Within-image share and position share of maps before pre-training.

    python -m benchmarks.map_content [--images 64] [--sides 64 128 224] [--out PAGE]

A run warns if the cells of a map are nearly alike, or if they mostly encode their position in the crop. The limits of
these warnings should be beyond the values before training. The models have random weights, and one encoder also has
ImageNet weights. Images are unlabelled scenes (`stamps`, 160 px), one crop of each, placed and flipped
as in training; BatchNorm normalises by the batch, as in training. Maps are the encoder's deepest and the decoder's
finest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.decoder_content import Budget
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import SetPlan, build
from benchmarks.speed.common import RESULTS, foot
from dovetail.downstream.labels.labelled import read_image
from dovetail.downstream.machine import normalised
from dovetail.downstream.probe.features import whole_view
from dovetail.downstream.probe.job import seeded_start
from dovetail.networks.build import build_network
from dovetail.networks.initialise import starting_statistics
from dovetail.networks.network import Network, decoder_taps, deepest_encoder_tap, finest_decoder_tap
from dovetail.networks.undisturbed import undisturbed
from dovetail.train.content import map_content
from dovetail.train.monitors import MAX_POSITION, MIN_WITHIN
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from dovetail.weights.start import begin_from

LITE0 = "timm/tf_efficientnet_lite0+fpn(channels=128)"
STARTS: tuple[tuple[str, str | None], ...] = (
    ("timm/resnet18+fpn", None),
    ("timm/convnext_atto+fpn", None),
    (LITE0, None),
    (LITE0, "imagenet"),
    ("smp/unet/resnet18", None),
    ("smp/fpn/resnet18", None),
    ("smp/deeplabv3plus/resnet18", None),
)
"""Models and the weights that they start from."""


def crops_of(images: Sequence[Tensor], side: int) -> Tensor:
    """Return a crop [3, side, side] of each image, stacked."""
    crop = v2.Compose([v2.RandomResizedCrop(side, scale=(0.2, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    with seeded_start(0):
        return torch.stack([crop(image) for image in images])


@torch.no_grad()
def readings(network: Network, init: str | None, crops: Tensor) -> Iterator[tuple[str, int, float, float]]:
    """Yield of each map its tap, the cells on a side, and both shares."""
    taps = [deepest_encoder_tap(network.taps)]
    taps += [finest_decoder_tap(network.taps)] if decoder_taps(network.taps) else []
    normalisation = starting_statistics(network, init) or (IMAGENET_MEAN, IMAGENET_STD)
    with undisturbed(network):
        network.train()
        maps = network(whole_view(normalised(crops, *normalisation)), taps)
    for tap in taps:
        shares = map_content(maps[tap])
        yield tap, maps[tap].shape[-1], float(shares.within), float(shares.position)


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.map_content", description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[64, 128, 224], help="side lengths of the crops in pixels"
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages and scenes")
    parser.add_argument("--out", type=Path, default=RESULTS / "map_content.md")
    options = parser.parse_args(arguments)
    budget = Budget()
    scenes = build(budget.scenes, options.cache, SetPlan(budget.side_px, dict(budget.counts)))  # type: ignore[arg-type]
    paths = sorted(path for path in Path(scenes.unlabelled).rglob("*") if path.suffix in (".jpg", ".png"))
    images = [read_image(path) for path in paths[: options.images]]
    lines = [
        "| model | weights | crop, px | map | cells | within-image share | position share |",
        "|---|---|---:|---|" + "---:|" * 3,
    ]
    found: list[tuple[float, float]] = []
    for side in options.sides:
        crops = crops_of(images, side)
        for model, init in STARTS:
            with seeded_start(0):
                network = build_network(model, image_size=side)
                begin_from(network, init)
            for tap, cells, within, position in readings(network, init, crops):
                found.append((within, position))
                size = f"{cells} x {cells}"
                lines.append(
                    f"| `{model}` | {init or 'random'} | {side} | {tap} | {size} | {within:.3f} | {position:.3f} |"
                )
                print(lines[-1], flush=True)
    least, most = min(within for within, _ in found), max(position for _, position in found)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    summary = (
        f"The smallest within-image share is {least:.3f}; a run warns below {MIN_WITHIN:g}. The largest position share "
        f"is {most:.3f}; a run warns above {MAX_POSITION:g}."
    )
    command = " ".join(["python -m benchmarks.map_content", *arguments])
    text = "\n".join(["# What the cells of untouched maps tell", "", about, "", *lines, "", summary, "", foot(command)])
    options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
