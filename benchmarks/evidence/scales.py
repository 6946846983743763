"""How large the study is: images, models, steps and seeds by the name of a scale. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.evidence.rows import Measure
from benchmarks.scenes.sets import SetPlan
from benchmarks.scenes.stock import Split

LITE0 = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        name: Name on the command line.
        images: Name of the set of scenes.
        plan: How the set is made.
        networks: Models by key.
        view_px: Side of the views in pre-training.
        epochs: Epochs of pre-training.
        batch_size: Images in a step of pre-training.
        taps: Where frozen maps are measured.
        protocols: How frozen maps are measured.
        probing: Further options of `dovetail.evaluate_dense`.
        neighbours: Nearest neighbours that vote on the class of an image; `mosaics` only.
        labels: Numbers of labelled images for frozen maps; 1.0 stands for all.
        fractions: Shares of the labelled images for fine-tuning the whole model, and its steps for each.
        decoder_fractions: The same for fine-tuning with a frozen encoder.
        finetuning: Options of `dovetail.finetune_segment`.
        rates: Candidates for the learning rate of fine-tuning.
        rate_fraction: Share of the labels with which the rate is chosen.
        detection: Options of `dovetail.finetune_detect`.
        detection_rates: Candidates for its learning rate.
        seeds: Each has a pre-training and a draw of the labelled images of its own.
        questions: What is measured unless the command line names questions.
    """

    name: str
    images: str
    plan: SetPlan
    networks: Mapping[str, str]
    view_px: int
    epochs: int
    batch_size: int
    taps: tuple[str, ...] = ("encoder", "decoder")
    protocols: tuple[str, ...] = ("linear", "retrieval")
    probing: Mapping[str, Any] = field(default_factory=dict)
    neighbours: int = 20
    labels: tuple[float, ...] = (16, 64, 1.0)
    fractions: Mapping[float, int] = field(default_factory=lambda: {0.05: 240, 1.0: 600})
    decoder_fractions: Mapping[float, int] = field(default_factory=lambda: {0.05: 240})
    finetuning: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = (5e-4, 1e-3)
    rate_fraction: float = 0.1
    detection: Mapping[str, Any] = field(default_factory=dict)
    detection_rates: tuple[float, ...] = (1e-2,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    questions: tuple[str, ...] = ("frozen", "decoder", "segment", "continued", "methods", "maps", "unet", "detect")

    def steps(self, measure: Measure) -> Mapping[float, int]:
        """Return the steps of fine-tuning for each share of the labels."""
        if measure == "image":
            return {1.0: 0}
        return self.decoder_fractions if measure == "decoder" else self.fractions


def counts(unlabelled: int, train: int, val: int, test: int) -> Mapping[Split, int]:
    """Return the number of scenes of each split."""
    return {"unlabelled": unlabelled, "train": train, "val": val, "test": test}


_FPN = "smp.FPN(encoder_name='tu-{}', decoder_pyramid_channels=128, decoder_segmentation_channels=128)"
_TABLETOP = Scale(
    name="tabletop",
    images="tabletop",
    plan=SetPlan(160, counts(2000, 400, 100, 300)),
    networks={
        "fpn": _FPN.format(LITE0),
        "unet": f"smp/unet/tu-{LITE0}",
        "detector": f"timm/{LITE0}+fpn(channels=128)",
    },
    view_px=128,
    epochs=2,
    batch_size=32,
    taps=("c3+c4", "decoder"),
    labels=(16, 64),
    probing={"lr": [0.1, 0.3, 1.0, 3.0], "weight_decay": [1e-4], "steps": 300, "memory": 4000},
    fractions={0.02: 240, 0.05: 240},
    decoder_fractions={0.02: 240, 0.05: 240},
    finetuning={"batch_size": 8, "crop_size": 128, "encoder_lr_scale": 0.1, "batch_norm": "frozen"},
    rates=(1e-3,),
    detection={
        "task": "masks",
        "steps": 400,
        "batch_size": 4,
        "image_size": 160,
        "head_width": 0.25,  # without a GPU, full heads take most of the time
        "proposals": 64,
    },
)
# Everything as for tabletop, with nothing chosen anew; images and crops are larger, and the objects real.
_STAMPS = replace(
    _TABLETOP,
    name="stamps",
    images="stamps",
    plan=SetPlan(224, counts(2000, 400, 100, 300), close=True),
    fractions={0.05: 240},
    decoder_fractions={0.05: 240},
    finetuning={**_TABLETOP.finetuning, "crop_size": 160},
)


def _boxes(scale: Scale, name: str, steps: int = 800) -> Scale:
    """Return a scale for detection: all labels and more steps, as no start finds objects with 20 images and 400."""
    detection = {**scale.detection, "steps": steps}
    return replace(scale, name=name, fractions={1.0: steps}, detection=detection, questions=("detect",))


def _fourth(name: str, fractions: Mapping[float, int], *questions: str, **changes: Any) -> Scale:
    """Return a scale of the fourth rendering, which has seeds of its own."""
    return replace(_TABLETOP, name=name, fractions=fractions, seeds=(3, 4, 5, 6, 7), questions=questions, **changes)


_SHARES: Mapping[float, int] = {0.01: 240, 0.1: 240, 1.0: 600}
SCALES: Mapping[str, Scale] = {
    "tabletop": _TABLETOP,
    "stamps": _STAMPS,
    "tabletop-again": replace(
        _TABLETOP,
        name="tabletop-again",
        fractions={0.05: 240},
        seeds=tuple(range(7)),
        questions=("starts", "starts-maps"),
    ),
    "tabletop-boxes": _boxes(_TABLETOP, "tabletop-boxes"),
    "tabletop-boxes-longer": _boxes(_TABLETOP, "tabletop-boxes-longer", steps=1600),
    "stamps-boxes": _boxes(_STAMPS, "stamps-boxes"),
    "tabletop-shares": replace(
        _TABLETOP, name="tabletop-shares", fractions={0.1: 240, 1.0: 600}, questions=("shares",)
    ),
    # A third rendering: what the second was not used for, with the seeds that it was not used with.
    "tabletop-third": replace(
        _TABLETOP,
        name="tabletop-third",
        fractions={0.05: 240},
        seeds=(1, 2, 3, 4),
        questions=("methods", "maps", "unet"),
    ),
    "tabletop-third-boxes-longer": replace(
        _boxes(_TABLETOP, "tabletop-third-boxes-longer", steps=1600), seeds=(1, 2, 3, 4)
    ),
    # A fourth rendering, for what the others did not measure with five seeds; its seeds are new.
    # The rate was chosen for an FPN, so a Unet gets its own, for every row.
    "tabletop-fourth": _fourth("tabletop-fourth", {0.05: 240}, "unet", rates=(1e-3, 3e-3, 1e-2), rate_fraction=0.05),
    "tabletop-fourth-longer": _fourth("tabletop-fourth-longer", {0.05: 960}, "unet", rates=(3e-3,)),
    # An FPN whose rate is chosen for every row as well, to see whether the one rate of the other scales favours any.
    "tabletop-fourth-rates": _fourth(
        "tabletop-fourth-rates", {0.05: 240}, "shares", rates=(5e-4, 1e-3, 3e-3), rate_fraction=0.05
    ),
    # The images and pre-trainings of stamps, with other numbers of labels.
    "shares": replace(_STAMPS, name="shares", fractions=_SHARES, seeds=(0,), questions=("shares",)),
    # The same again, fine-tuned for a quarter of the steps.
    "brief": replace(_STAMPS, name="brief", fractions={0.05: 60}, questions=("brief",)),
    "tokens": Scale(
        name="tokens",
        images="mosaics",
        plan=SetPlan(64, counts(1024, 400, 100, 200)),
        networks={"vit": "timm.create_model('test_vit', patch_size=8, depth=4, weight_init='jax')+fpn(channels=32)"},
        view_px=64,
        epochs=60,
        batch_size=32,
        taps=("encoder",),
        labels=(16, 64),
        probing={**_TABLETOP.probing, "image_size": 128},  # mosaics are twice as wide as views
        fractions={0.05: 200, 0.1: 200},
        finetuning={"batch_size": 12, "crop_size": 64},
        rates=(2e-3,),  # the one chosen for every row there
        questions=("tokens", "pieces", "scenes"),
    ),
    "tiny": Scale(
        name="tiny",
        images="mosaics",
        plan=SetPlan(64, counts(16, 60, 2, 4)),
        networks={"fpn": "smp/fpn/tu-resnet10t", "unet": "smp/unet/tu-resnet10t", "detector": "timm/resnet10t+fpn"},
        view_px=64,
        epochs=1,
        batch_size=8,
        labels=(16, 1.0),
        probing={"lr": [0.1], "weight_decay": [1e-4], "steps": 20},
        fractions={0.5: 2, 1.0: 2},
        decoder_fractions={0.5: 2},
        finetuning={"batch_size": 4, "crop_size": 64},
        rates=(1e-3,),
        rate_fraction=0.5,
        detection={"task": "masks", "steps": 2, "batch_size": 2, "image_size": 64, "head_width": 0.0625},
        seeds=(0, 1),
    ),
}
