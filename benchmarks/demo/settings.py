"""The demo's settings. None was chosen on the test images; benchmarks/results/demo.md says how each was chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dovetail.downstream.segment.augment import Augmentation
from dovetail.downstream.segment.loop import SegmentOptions

SCENES = Path(__file__).parent / "scenes"
CLASSES = (
    *("background", "bottle", "can", "cup", "bowl", "wineglass", "pan", "chair", "sofa", "table", "lamp", "monitor"),
    *("apple", "plant", "books", "toilet", "microwave"),
)
WIDTHS = {"decoder_pyramid_channels": 128, "decoder_segmentation_channels": 128}
ENCODER = "tu-tf_efficientnet_lite0"
MODEL = f"smp.FPN(encoder_name='{ENCODER}', {', '.join(f'{name}={width}' for name, width in WIDTHS.items())})"


@dataclass(frozen=True)
class Pretraining:
    """Options of `dovetail.pretrain`, but for the images and the folder."""

    method: str
    preset: Literal["short", "continue"] = "continue"
    recipe: dict[str, Any] = field(default_factory=dict)
    epochs: int = 6
    batch_size: int = 16
    image_size: int = 128
    freeze_encoder_epochs: float | Literal["all", "auto"] = "auto"
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return them as keyword arguments; every pre-training starts from ImageNet weights."""
        return {**vars(self), "recipe": dict(self.recipe), "model": MODEL, "init": "imagenet"}


# As docs/choose.md advises for trained weights: the encoder keeps its BatchNorm statistics, and beside a new decoder it
# is frozen for the first half of the run.
BASE = Pretraining("slotcon")
DECON = Pretraining("decon-sl")
# The default for trained weights: all that the run learns is in the decoder.
TARGETS = Pretraining("encoder-targets", "short", freeze_encoder_epochs="all")

FINETUNING = SegmentOptions(
    classes=len(CLASSES),
    steps=80,
    batch_size=8,
    lr=1e-3,
    warmup_steps=10,
    # With few labels the encoder keeps its weights, as docs/results.md advises.
    lr_scale={"encoder": 0.0},
    batch_norm="frozen",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    augmentation=Augmentation(crop_px=(128, 128), flip_p=0.5),
)


@dataclass(frozen=True)
class DemoSettings:
    """All that the demo does.

    Attributes:
        scenes: Folder of the scenes.
        base: Pre-training of the encoder alone.
        decon: Pre-training of the decoder by DeCon's loss.
        targets: Pre-training of the decoder by the encoder's features.
        labels: Numbers of labelled images for the frozen maps.
        probe_seeds: Draws of the labelled images for the frozen maps.
        probe_steps: Steps of the linear classifier on frozen maps.
        probe_rates: Candidates for its learning rate.
        finetuning: Fine-tuning of every row, with all labelled images.
        seeds: Seeds of fine-tuning.
    """

    scenes: Path = SCENES
    base: Pretraining = BASE
    decon: Pretraining = DECON
    targets: Pretraining = TARGETS
    labels: tuple[int, ...] = (8, 24)
    probe_seeds: int = 5
    probe_steps: int = 200
    probe_rates: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    finetuning: SegmentOptions = FINETUNING
    seeds: tuple[int, ...] = (0, 1, 2)
