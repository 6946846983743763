"""What the study compares: rows and the questions they belong to. Plain data.

A row is a way to start a model: random weights, ImageNet weights with a random decoder, or a pre-training. Every
pre-training is run once for each seed. Rows share the labelled images of a seed, so two rows can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dovetail.errors import unknown_name

Start = Literal["random", "encoder", "all"]
Measure = Literal["frozen", "image", "segment", "decoder", "detect"]
"""Frozen maps; frozen features of whole images; fine-tuning of the whole model, or with a frozen encoder; detection."""
ENCODER: tuple[Start, ...] = ("encoder",)
ALL: tuple[Start, ...] = ("all",)
BOTH: tuple[Start, ...] = ("encoder", "all")


@dataclass(frozen=True)
class Pretraining:
    """One call of `dovetail.pretrain`.

    Attributes:
        method: Name of the method.
        recipe: Options of its recipe, over those of the preset.
        options: Further options of `dovetail.pretrain`, such as `lr` or `freeze_encoder_epochs`.
        longer: Factor on the number of epochs; makes a cheap method run for as long as an expensive one.
    """

    method: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    longer: float = 1.0


@dataclass(frozen=True)
class Row:
    """A way to start.

    Attributes:
        name: Name in the tables.
        pretraining: None for weights as they are.
        init: Weights that the encoder starts from, before any pre-training; None for random ones.
        network: Key of `Scale.networks`.
        starts: What fine-tuning takes along: "random" nothing, "encoder", or "all" for encoder and decoder.
        finetuning: Options of fine-tuning in place of the scale's.
    """

    name: str
    pretraining: Pretraining | None = None
    init: Literal["imagenet"] | None = "imagenet"
    network: str = "fpn"
    starts: tuple[Start, ...] = ENCODER
    finetuning: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Two rows whose difference is asked for, seed by seed: the first minus the second."""

    row: str
    start: Start
    other: str
    other_start: Start


@dataclass(frozen=True)
class Question:
    """A section of tables: rows, the measure they are compared by, and the differences that answer the question."""

    name: str
    title: str
    measure: Measure
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...] = ()


def decon(name: str, method: str, *, freeze: float | str = 0.0, longer: float = 1.0, **recipe: Any) -> Row:
    """Return a row of DeCon; `freeze` is the number of epochs at the start in which the encoder is frozen, or "all"."""
    options: dict[str, Any] = {"freeze_encoder_epochs": freeze} if freeze else {}
    starts = ALL if freeze == "all" else BOTH  # an encoder that was frozen is the starting encoder
    return Row(name, Pretraining(method, recipe, options, longer), starts=starts)


def targets(name: str, longer: float = 1.0) -> Row:
    """Return a row of encoder targets, on a frozen encoder."""
    return Row(name, Pretraining("encoder-targets", {}, {"freeze_encoder_epochs": "all"}, longer), starts=ALL)


IMAGENET = Row("ImageNet, random decoder")
# Random weights have to learn at the full rate, and have no statistics to keep.
RANDOM = Row(
    "random weights", init=None, starts=("random",), finetuning={"encoder_lr_scale": 1.0, "batch_norm": "train"}
)
SLOTCON = Row("SlotCon", Pretraining("slotcon"))
SLOTCON_LONGER = Row("SlotCon, 1.5 times the steps", Pretraining("slotcon", longer=1.5))
DECON_DECODER = decon("DeCon-SL over SlotCon, decoder alone", "decon-sl", freeze="all", alpha=0.0)
DECON_JOINT = decon("DeCon-SL over SlotCon, joint", "decon-sl")
CONTINUE: Mapping[str, Any] = {"preset": "continue", "encoder_batch_norm": "frozen"}
CONTINUED = Row("DeCon-SL over SlotCon, preset continue", Pretraining("decon-sl", {}, CONTINUE), starts=ALL)
SLOTCON_CONTINUED = Row("SlotCon, preset continue", Pretraining("slotcon", {}, CONTINUE))
SLOTCON_CONTINUED_LONGER = Row(
    "SlotCon, preset continue, twice the steps", Pretraining("slotcon", {}, CONTINUE, longer=2.0)
)
DENSECL_CONTINUED = Row("DenseCL, preset continue", Pretraining("densecl", {}, CONTINUE))
CONTINUED_ALPHA_0 = Row(
    "DeCon-SL over SlotCon, preset continue, alpha 0", Pretraining("decon-sl", {"alpha": 0.0}, CONTINUE), starts=ALL
)
CONTINUED_AT_ONCE = Row(
    "DeCon-SL over SlotCon, preset continue, joint from the start",
    Pretraining("decon-sl", {}, {**CONTINUE, "freeze_encoder_epochs": 0.0}),
    starts=ALL,
)
DENSECL_DECON = Row("DeCon-SL over DenseCL, preset continue", Pretraining("decon-sl-densecl", {}, CONTINUE), starts=ALL)
ML_CONTINUED = Row("DeCon-ML over SlotCon, preset continue", Pretraining("decon-ml", {}, CONTINUE), starts=ALL)
CONTINUED_TRAINED = Row(
    "DeCon-SL over SlotCon, preset continue, BatchNorm trained",
    Pretraining("decon-sl", {}, {"preset": "continue", "encoder_batch_norm": "train"}),
    starts=BOTH,
)
TARGETS = targets("encoder targets")
TARGETS_LONGER = targets("encoder targets, 2.5 times the steps", longer=2.5)
TARGETS_LONG = targets("encoder targets, 10 times the steps", longer=10.0)
CONTINUED_LONG = Row(
    "DeCon-SL over SlotCon, preset continue, 4 times the steps",
    Pretraining("decon-sl", {}, CONTINUE, longer=4.0),
    starts=ALL,
)

JOINT: tuple[Row, ...] = (
    RANDOM,
    IMAGENET,
    SLOTCON,
    SLOTCON_LONGER,
    Row("DenseCL", Pretraining("densecl")),
    DECON_JOINT,
    decon("DeCon-SL over SlotCon, joint, alpha 0", "decon-sl", alpha=0.0),
    CONTINUED,
    SLOTCON_CONTINUED,
    CONTINUED_TRAINED,
    DECON_DECODER,
    decon("DeCon-ML over SlotCon, decoder alone", "decon-ml", freeze="all", alpha=0.0),
    TARGETS,
    TARGETS_LONGER,
)
FINETUNED: tuple[Row, ...] = (RANDOM, IMAGENET, SLOTCON, DECON_JOINT, DECON_DECODER, TARGETS_LONGER)
DECODERS: tuple[Row, ...] = (IMAGENET, DECON_DECODER, CONTINUED, TARGETS_LONGER)


def against_starts(rows: tuple[Row, ...]) -> tuple[Pair, ...]:
    """Return the differences of every row over ImageNet weights, and of taking the decoder along over leaving it."""
    pairs: list[Pair] = []
    for row in rows:
        for start in row.starts:
            if row is not IMAGENET:
                pairs.append(Pair(row.name, start, IMAGENET.name, "encoder"))
        if row.starts == BOTH:
            pairs.append(Pair(row.name, "all", row.name, "encoder"))
    return tuple(pairs)


def between(rows: tuple[Row, ...]) -> tuple[Pair, ...]:
    """Return the differences of frozen maps: every row over ImageNet weights, and four between rows."""
    sides = [(row, IMAGENET) for row in rows if row is not IMAGENET] + [
        (CONTINUED, CONTINUED_TRAINED),
        (CONTINUED, SLOTCON_CONTINUED),
        (DECON_JOINT, SLOTCON),
        (DECON_JOINT, SLOTCON_LONGER),
    ]
    return tuple(Pair(row.name, row.starts[0], other.name, other.starts[0]) for row, other in sides)


METHODS: tuple[Row, ...] = (
    IMAGENET,
    SLOTCON_CONTINUED,
    SLOTCON_CONTINUED_LONGER,
    DENSECL_CONTINUED,
    CONTINUED,
    CONTINUED_AT_ONCE,
    CONTINUED_ALPHA_0,
    ML_CONTINUED,
    DENSECL_DECON,
    TARGETS_LONGER,
)


def on_network(network: str, name: str) -> tuple[Row, ...]:
    """Return ImageNet weights, SlotCon for two lengths, DeCon-SL and encoder targets on another network."""
    rows = (IMAGENET, SLOTCON_CONTINUED, SLOTCON_CONTINUED_LONGER, CONTINUED, TARGETS_LONGER)
    return tuple(replace(row, name=f"{row.name}, {name}", network=network) for row in rows)


def over_first(rows: tuple[Row, ...]) -> tuple[Pair, ...]:
    """Return the differences of every row over the first one."""
    first = rows[0]
    return tuple(Pair(row.name, row.starts[0], first.name, first.starts[0]) for row in rows[1:])


def over_bases(rows: tuple[Row, ...]) -> tuple[Pair, ...]:
    """Return the differences of every row over the first, of DeCon and encoder targets over the base, and theirs."""
    decon_name, targets_name = (
        next(row.name for row in rows if row.pretraining == known.pretraining) for known in (CONTINUED, TARGETS_LONGER)
    )
    bases = [row.name for row in rows if row.pretraining and row.pretraining.method == "slotcon"]
    whole = [Pair(name, "all", base, "encoder") for name in (decon_name, targets_name) for base in bases]
    return (*over_first(rows), *whole, Pair(targets_name, "all", decon_name, "all"))


# Rate and temperature were chosen for DINO on the images to choose with (benchmarks/results/textures_64px).
WARM: Mapping[str, Any] = {"teacher_temperature": 0.04, "warmup_temperature": 0.04}
UNTRAINED_VIT = Row("ViT, random weights", init=None, network="vit", starts=("random",))
DINO = Row("DINO", Pretraining("dino", WARM), init=None, network="vit")
DINO_LONGER = Row("DINO, 1.3 times the steps", Pretraining("dino", WARM, longer=1.3), init=None, network="vit")
DINO_LONGEST = Row("DINO, 1.65 times the steps", Pretraining("dino", WARM, longer=1.65), init=None, network="vit")
ADCLR = Row("ADCLR over DINO", Pretraining("adclr", WARM), init=None, network="vit")
TOKENS: tuple[Row, ...] = (UNTRAINED_VIT, DINO, DINO_LONGER, DINO_LONGEST, ADCLR)
TOKEN_PAIRS: tuple[Pair, ...] = (
    *over_first(TOKENS),
    *(Pair(ADCLR.name, "encoder", other.name, "encoder") for other in (DINO, DINO_LONGER, DINO_LONGEST)),
    Pair(DINO_LONGER.name, "encoder", DINO.name, "encoder"),
)
METHOD_PAIRS: tuple[Pair, ...] = (
    *over_first(METHODS),
    Pair(CONTINUED.name, "all", SLOTCON_CONTINUED.name, "encoder"),
    Pair(CONTINUED.name, "all", SLOTCON_CONTINUED_LONGER.name, "encoder"),
    Pair(CONTINUED.name, "all", CONTINUED_AT_ONCE.name, "all"),
    Pair(ML_CONTINUED.name, "all", SLOTCON_CONTINUED.name, "encoder"),
    Pair(DENSECL_DECON.name, "all", DENSECL_CONTINUED.name, "encoder"),
)
UNETS, DETECTORS = on_network("unet", "Unet"), on_network("detector", "Mask R-CNN")
BRIEF: tuple[Row, ...] = (IMAGENET, CONTINUED, TARGETS_LONGER)
SHARES: tuple[Row, ...] = (IMAGENET, SLOTCON_CONTINUED, CONTINUED, TARGETS_LONGER)
STARTS: tuple[Row, ...] = (
    *(IMAGENET, SLOTCON_CONTINUED, SLOTCON_CONTINUED_LONGER),
    replace(CONTINUED, starts=("all", "encoder")),
    *(TARGETS_LONGER, CONTINUED_LONG, TARGETS_LONG),
)
START_PAIRS: tuple[Pair, ...] = (
    *over_bases(STARTS),
    Pair(CONTINUED.name, "encoder", IMAGENET.name, "encoder"),
    Pair(CONTINUED.name, "all", CONTINUED.name, "encoder"),
)
CONTINUED_OR_NOT: tuple[Row, ...] = (RANDOM, IMAGENET, SLOTCON_CONTINUED, DECON_JOINT, CONTINUED_TRAINED, CONTINUED)
QUESTIONS: tuple[Question, ...] = (
    Question("frozen", "Frozen maps", "frozen", JOINT, between(JOINT)),
    Question(
        "decoder", "Segmentation after fine-tuning with a frozen encoder", "decoder", DECODERS, against_starts(DECODERS)
    ),
    Question(
        "segment",
        "Segmentation after fine-tuning",
        "segment",
        FINETUNED,
        (*against_starts(FINETUNED), *(Pair(DECON_JOINT.name, at, SLOTCON.name, "encoder") for at in BOTH)),
    ),
    Question(
        "continued",
        "Segmentation after fine-tuning, by preset",
        "segment",
        CONTINUED_OR_NOT,
        (
            *against_starts(CONTINUED_OR_NOT),
            Pair(CONTINUED.name, "all", CONTINUED_TRAINED.name, "all"),
            Pair(CONTINUED.name, "all", SLOTCON_CONTINUED.name, "encoder"),
        ),
    ),
    Question("methods", "Segmentation after fine-tuning, by method", "segment", METHODS, METHOD_PAIRS),
    Question("maps", "Frozen maps, by method", "frozen", METHODS, METHOD_PAIRS),
    Question("unet", "Segmentation after fine-tuning, Unet", "segment", UNETS, over_bases(UNETS)),
    Question("detect", "Detection after fine-tuning", "detect", DETECTORS, over_bases(DETECTORS)),
    Question("brief", "Segmentation after a short fine-tuning", "segment", BRIEF, over_first(BRIEF)),
    Question("shares", "Segmentation after fine-tuning, by share of the labels", "segment", SHARES, over_bases(SHARES)),
    Question("starts", "Segmentation after fine-tuning, side by side", "segment", STARTS, START_PAIRS),
    Question("starts-maps", "Frozen maps, side by side", "frozen", STARTS, over_bases(STARTS)),
    Question("tokens", "Frozen maps of a ViT", "frozen", TOKENS, TOKEN_PAIRS),
    Question("scenes", "Segmentation after fine-tuning a ViT", "segment", TOKENS, TOKEN_PAIRS),
    Question("pieces", "Images of one texture, k nearest neighbours", "image", TOKENS, TOKEN_PAIRS),
)


def question_named(name: str) -> Question:
    """Return a question; raise `DovetailError` for an unknown name."""
    by_name = {question.name: question for question in QUESTIONS}
    if name not in by_name:
        raise unknown_name("question", name, by_name)
    return by_name[name]
