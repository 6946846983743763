"""The questions that the study asks: which arms each compares, and which differences it tells. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.evidence.arms import ALL, ENCODER, HOME, OBJECTS, RANDOM, Arm
from benchmarks.evidence.comparisons import (
    Comparison,
    Question,
    arm_of,
    lasting,
    over_base_and_scratch,
    over_plain_form,
    variants,
    with_over_without,
)
from dovetail.errors import unknown_name
from dovetail.transfer.start import Start

# Decoders come with DeCon alone; a base pre-trains an encoder.
SEGMENTATION: tuple[Arm, ...] = (
    Arm("from scratch", None, None, (RANDOM,)),
    Arm("slotcon", "slotcon", "slotcon", (ENCODER,)),
    Arm("decon-sl", "decon-sl", "slotcon", (ENCODER, ALL)),
    Arm("decon-ml", "decon-ml", "slotcon", (ENCODER, ALL)),
    Arm("densecl", "densecl", "densecl", (ENCODER,)),
    Arm("densecl, twice as long", "densecl", "densecl", (ENCODER,), longer=2.0),
    Arm("decon-sl-densecl", "decon-sl-densecl", "densecl", (ENCODER, ALL)),
    Arm("decon-ml-densecl", "decon-ml-densecl", "densecl", (ENCODER, ALL)),
    Arm("pixpro", "pixpro", "pixpro", (ENCODER,)),
    Arm("decon-sl-pixpro", "decon-sl-pixpro", "pixpro", (ENCODER, ALL)),
    Arm("decon-ml-pixpro", "decon-ml-pixpro", "pixpro", (ENCODER, ALL)),
    Arm("untrained encoder, frozen", None, None, (RANDOM,), encoder_lr_scale=0.0, trivial=True),
    Arm("one label everywhere", None, None, (RANDOM,), trivial=True, cue="background"),
    Arm("colour histogram alone", None, None, (RANDOM,), trivial=True, cue="colour"),
    Arm("edges alone", None, None, (RANDOM,), trivial=True, cue="edges"),
)


# A step of DeCon takes about as long as two of its base, so the base has twice the steps here.
def for_the_same_time(suffix: str = "") -> tuple[Comparison, ...]:
    """Return the differences of DeCon over its base with twice the steps; `suffix` is how both arms' names end."""
    base = f"densecl, twice as long{suffix}"
    forms = (f"decon-{form}-densecl{suffix}" for form in ("sl", "ml"))
    return tuple(Comparison(name, start, base, ENCODER) for name in forms for start in (ENCODER, ALL))


_OVER_DENSECL = arm_of(SEGMENTATION, "decon-sl-densecl")
# Other weights of the encoder's part than 0.5, the multi-level form without dropout, the official code's quirks.
ABLATIONS: tuple[Arm, ...] = (
    *variants(_OVER_DENSECL, {f"alpha {alpha:g}": {"alpha": alpha} for alpha in (0.0, 0.25, 0.75)}),
    *variants(_OVER_DENSECL, {"level p3": {"levels": "p3"}}),
    *variants(arm_of(SEGMENTATION, "decon-ml-densecl"), {"no dropout": {"lateral_dropout": 0.0}}),
    *variants(
        arm_of(SEGMENTATION, "decon-sl"),
        {quirk: {quirk: True} for quirk in ("reference_double_momentum_counter", "reference_frozen_prototypes")},
    ),
)

# The same pre-training, fine-tuned otherwise.
_FINETUNED: Mapping[str, Mapping[str, Any]] = {
    "encoder at a quarter of the rate": {"encoder_lr_scale": 0.25},
    "BatchNorm measured anew": {"finetuning": {"batch_norm": "reestimate"}},
    "BatchNorm frozen": {"finetuning": {"batch_norm": "frozen"}},
}
FINETUNING: tuple[Arm, ...] = (
    *(replace(_OVER_DENSECL, name=f"{_OVER_DENSECL.name}, {name}", **change) for name, change in _FINETUNED.items()),
    *variants(_OVER_DENSECL, {"teacher's weights": {"export": "teacher"}}),
)

# Most rows of the first question take the highest of the budget's candidates. Here are higher ones to choose from, and
# one of them for all rows alike.
_CARRIED = [arm for arm in SEGMENTATION if arm.name in ("from scratch", "densecl", "decon-sl-densecl")]
_FLOORS = [arm for arm in SEGMENTATION if arm.cue is not None]
_HIGHER: Mapping[str, tuple[float, ...]] = {"higher rates": (4e-3, 8e-3, 1.6e-2), "all at 0.008": (8e-3,)}
RATES: tuple[tuple[Arm, ...], ...] = tuple(
    tuple(replace(arm, name=f"{arm.name}, {name}", rates=rates) for arm in _CARRIED) for name, rates in _HIGHER.items()
)

# The same short runs with the published momenta, rates and augmentations, and heads for few images.
PRESETS: tuple[Arm, ...] = tuple(
    replace(arm_of(SEGMENTATION, name), name=f"{name}, small preset", base=None)
    for name in ("densecl", "slotcon", "decon-sl-densecl")
)

# All on one ViT with an FPN, which fine-tuning begins anew unless it was pre-trained.
TOKENS: tuple[Arm, ...] = (
    Arm("ViT from scratch", None, None, (RANDOM,), network="vit"),
    Arm("dino", "dino", "dino", (ENCODER,), network="vit"),
    Arm("adclr", "adclr", "dino", (ENCODER,), network="vit"),
    Arm("ibot", "ibot", "ibot", (ENCODER,), network="vit"),
    Arm("adclr-ibot", "adclr-ibot", "ibot", (ENCODER,), network="vit"),
    Arm("dino+decon-sl-densecl", "dino+decon-sl-densecl", "dino", (ENCODER, ALL), network="vit"),
    Arm("adclr+decon-sl-densecl", "adclr+decon-sl-densecl", "dino", (ENCODER, ALL), network="vit"),
)
# A step with query patches takes as much longer, so each base has as many more steps here.
_LONGER_TOKENS: tuple[Arm, ...] = (
    Arm("dino, 1.6 times as long", "dino", "dino", (ENCODER,), network="vit", longer=1.6),
    Arm("ibot, 1.5 times as long", "ibot", "ibot", (ENCODER,), network="vit", longer=1.5),
)


def queries_for_the_same_time(suffix: str = "") -> tuple[Comparison, ...]:
    """Return the differences of ADCLR over its bases with more steps; `suffix` is how all arms' names end."""
    return tuple(
        Comparison(f"{name}{suffix}", ENCODER, f"{base.name}{suffix}", ENCODER)
        for name, base in zip(("adclr", "adclr-ibot"), _LONGER_TOKENS, strict=True)
    )


def frozen(arms: Sequence[Arm], suffix: str, place: str = HOME) -> tuple[Arm, ...]:
    """Return arms that are measured without fine-tuning, which hides what an encoder has learnt."""
    change: dict[str, Any] = {"measured_on": place, "trained_on": place, "measure": "frozen"}
    return tuple(replace(arm, name=f"{arm.name}, {suffix}", starts=arm.starts[:1], **change) for arm in arms)


_PROBED: tuple[Arm, ...] = (
    Arm("untrained ViT", None, None, (RANDOM,), network="vit"),
    *(arm for arm in TOKENS if arm.method is not None),
    *_LONGER_TOKENS,
    Arm("commoner class alone", None, None, (RANDOM,), trivial=True, cue="commoner class"),
)
FROZEN = frozen(_PROBED, "frozen")
_ALONE = [arm for arm in _PROBED if arm not in _LONGER_TOKENS and "decon" not in str(arm.method)]
SOLAR = frozen(_ALONE, "solar", "solar")
# What the paper varies: the number of queries S, their weight, the size of their crops, who attends to whom.
QUERIES: tuple[Arm, ...] = variants(
    arm_of(FROZEN, "adclr, frozen"),
    {
        **{f"{count} {'query' if count == 1 else 'queries'}": {"queries": count} for count in (1, 5, 20)},
        **{f"weight {weight:g}": {"query_weight": weight} for weight in (0.25, 4.0)},
        "crops of 1 to 5 %": {"query_scale": (0.01, 0.05)},
        "crops of 25 to 50 %": {"query_scale": (0.25, 0.5)},
        "queries not blurred": {"query_blur_px": 0.0},  # 2 px, as of a view, are much of a patch of 8
        "bidirectional": {"query_attention": "bidirectional"},
    },
)


# What benchmarks/results/token_settings.md chose for each: DINO keeps the preset's rate, ADCLR bears four times that.
_SOFTER: Mapping[str, float] = {"teacher_temperature": 0.04, "warmup_temperature": 0.04}
_OWN: Mapping[str, Mapping[str, float]] = {"dino": _SOFTER, "adclr": {"base_lr": 1.6e-2}}
_OWN_LENGTHS: Mapping[str, tuple[float, ...]] = {"dino": (1.0, 4.0), "adclr": (1.0, 4.0)}
_OWN_ARMS: tuple[Arm, ...] = tuple(
    replace(
        arm_of(FROZEN, f"{method}, frozen"),
        name=lasting(f"{method}, frozen, own settings", longer),
        options=_OWN[method],
        longer=longer,
    )
    for method, lengths in _OWN_LENGTHS.items()
    for longer in lengths
)
# A rate that suits 480 steps need not suit four times as many, so ADCLR has DINO's settings there, too.
_AS_DINO = replace(
    arm_of(_OWN_ARMS, "adclr, frozen, own settings, 4 times as long"),
    name="adclr, frozen, DINO's own settings, 4 times as long",
    options=_SOFTER,
)
OWN = (*_OWN_ARMS, _AS_DINO)
# The longer ones at DINO's settings once more, fine-tuned.
_AT_LENGTH: tuple[Arm, ...] = tuple(
    replace(arm, name=arm.name.replace(", frozen", ""), measure="segmentation")
    for arm in (arm_of(OWN, "dino, frozen, own settings, 4 times as long"), _AS_DINO)
)


def at_own_settings() -> tuple[Comparison, ...]:
    """Return the differences over the plain forms, of ADCLR over DINO, for as many steps and for the same time."""
    plain = {method: f"{method}, frozen" for method in _OWN}
    own = {method: f"{name}, own settings" for method, name in plain.items()}
    adclr, longer = own["adclr"], lasting(own["adclr"], 4.0)
    pairs = (
        *((own[method], plain[method]) for method in _OWN),
        (adclr, own["dino"]),
        (adclr, plain["dino"]),
        (adclr, _LONGER_TOKENS[0].name + ", frozen"),
        (longer, lasting(own["dino"], 4.0)),
        (_AS_DINO.name, lasting(own["dino"], 4.0)),
        (_AS_DINO.name, longer),
        *((lasting(own[method], 4.0), own[method]) for method in _OWN),
    )
    return tuple(Comparison(first, ENCODER, second, ENCODER) for first, second in pairs)


def finetuned_at_length() -> tuple[Comparison, ...]:
    """Return the differences of long pre-trainings over none, over DINO's short one, and of ADCLR over DINO."""
    (first, second), scratch = _AT_LENGTH, TOKENS[0]
    return (
        *(Comparison(arm.name, ENCODER, scratch.name, RANDOM) for arm in _AT_LENGTH),
        Comparison(first.name, ENCODER, "dino", ENCODER),
        Comparison(second.name, ENCODER, first.name, ENCODER),
    )


def joint_over_each() -> tuple[Comparison, ...]:
    """Return the differences of ADCLR with DeCon over either alone."""
    joint, halves = "adclr+decon-sl-densecl", (("adclr", ENCODER), ("dino+decon-sl-densecl", ALL))
    return tuple(Comparison(joint, ALL, half, start) for half, start in halves)


def elsewhere(title: str, suffix: str, arms: Sequence[Arm]) -> Question:
    """Return the question of what arms of the first give elsewhere; `arms` say where, `suffix` is their names' end."""
    named = tuple(replace(arm, name=f"{arm.name}, {suffix}") for arm in arms)
    scratch = next(arm for arm in named if arm.method is None)
    return Question(suffix, title, named, over_base_and_scratch(named, scratch))


# A run of one encoder with a detector's pyramid, under heads that fine-tuning begins anew.
DETECTION: tuple[Arm, ...] = (
    *(
        replace(arm, name=f"{arm.name}, detection", network="detector", measured_on=OBJECTS, measure="detection")
        for arm in SEGMENTATION
        if not arm.trivial
    ),
    Arm(
        *("mean box of each class", None, None, (RANDOM,)),
        trivial=True,
        cue="mean box",
        measured_on=OBJECTS,
        measure="detection",
    ),
)

# Encoders that took the higher of the candidate rates, at the lower one, which the rows they are compared with took.
LOWER: tuple[Arm, ...] = tuple(
    replace(
        arm_of(DETECTION, f"{name}, detection"), name=f"{name}, detection, at 0.02", starts=(ENCODER,), rates=(2e-2,)
    )
    for name in ("densecl", "decon-sl")
)
_AT_LOWER: Mapping[str, tuple[tuple[str, Start], ...]] = {
    "densecl": (("decon-ml-densecl", ENCODER), ("decon-ml-densecl", ALL), ("densecl, twice as long", ENCODER)),
    "decon-sl": (("slotcon", ENCODER), ("decon-sl", ALL)),
}


def at_the_lower_rate() -> tuple[Comparison, ...]:
    """Return the differences of those rows over themselves at the higher rate, and over rows that took the lower."""
    scratch = DETECTION[0].name
    return tuple(
        one
        for lower, (name, others) in zip(LOWER, _AT_LOWER.items(), strict=True)
        for one in (
            Comparison(lower.name, ENCODER, f"{name}, detection", ENCODER),
            Comparison(lower.name, ENCODER, scratch, RANDOM),
            *(Comparison(lower.name, ENCODER, f"{other}, detection", start) for other, start in others),
        )
    )


QUESTIONS: tuple[Question, ...] = (
    Question(
        "segmentation",
        "Segmentation: does joint pre-training pay?",
        SEGMENTATION,
        (*over_base_and_scratch(SEGMENTATION, SEGMENTATION[0]), *for_the_same_time()),
    ),
    Question(
        "detection",
        "Detection and instance segmentation: does joint pre-training pay?",
        DETECTION,
        (*over_base_and_scratch(DETECTION, DETECTION[0]), *for_the_same_time(", detection")),
    ),
    Question(
        "detection-rates",
        "Detection at one rate: DenseCL and DeCon's encoder over SlotCon, which took 0.05, at 0.02",
        LOWER,
        at_the_lower_rate(),
        budgets=("cpu",),
    ),
    Question(
        "tokens",
        "ViTs: ADCLR over its bases, and together with DeCon",
        (*TOKENS, *_LONGER_TOKENS),
        (
            *over_base_and_scratch((*TOKENS, *_LONGER_TOKENS), TOKENS[0]),
            *joint_over_each(),
            *queries_for_the_same_time(),
        ),
    ),
    Question(
        "frozen",
        "Frozen ViTs on pieces of one texture: ADCLR over its bases",
        FROZEN,
        (*over_base_and_scratch(FROZEN, FROZEN[0]), *queries_for_the_same_time(", frozen")),
        budgets=("cpu",),
    ),
    Question(
        "solar",
        "Frozen ViTs on photographs of solar cells: ADCLR over its bases",
        SOLAR,
        over_base_and_scratch(SOLAR, SOLAR[0]),
    ),
    Question("queries", "What ADCLR's options do", QUERIES, over_plain_form(QUERIES), budgets=("cpu",)),
    Question(
        "own-settings",
        "ADCLR and DINO, each at a rate and a temperature of its own, and for four times as many steps",
        OWN,
        at_own_settings(),
        budgets=("cpu",),
    ),
    Question(
        "tokens-longer",
        "ViTs after fine-tuning, pre-trained for four times as many steps",
        _AT_LENGTH,
        finetuned_at_length(),
        budgets=("cpu",),
    ),
    Question("ablations", "What DeCon's options do", ABLATIONS, over_plain_form(ABLATIONS)),
    Question("presets", "Short runs want a schedule of their own", PRESETS, over_plain_form(PRESETS), budgets=("cpu",)),
    Question(
        "finetuning",
        "Fine-tuning otherwise: when the decoder pays",
        FINETUNING,
        (*over_plain_form(FINETUNING), *with_over_without(FINETUNING)),
    ),
    Question(
        "rates",
        "Fine-tuning at higher rates: the best of 0.004, 0.008 and 0.016, and 0.008 for all",
        (*RATES[0], *RATES[1]),
        tuple(one for arms in RATES for one in (*over_base_and_scratch(arms, arms[0]), *over_plain_form(arms))),
        budgets=("cpu",),
    ),
    *(
        elsewhere(f"Another domain: fine-tuned on `{name}`", name, _arms)
        for name, _arms in (
            (name, [replace(arm, measured_on=name) for arm in (*_CARRIED, *_FLOORS)]) for name in ("rooms", "corridors")
        )
    ),
    elsewhere(
        "Another domain: fine-tuned on `corridors` for 500 steps",
        "corridors-longer",
        [replace(arm, measured_on="corridors", finetuning={"steps": 500}) for arm in _CARRIED],
    ),
    elsewhere(
        "Another decoder: fine-tuned as a Unet, pre-trained below an FPN or whole",
        "unet",
        [
            *(replace(arm, network="unet", starts=tuple(one for one in arm.starts if one != ALL)) for arm in _CARRIED),
            replace(_OVER_DENSECL, name=f"{_OVER_DENSECL.name} of the whole", network="whole unet"),
        ],
    ),
)


def question_named(name: str) -> Question:
    """Return a question; raise `DovetailError` for an unknown name."""
    by_name = {question.name: question for question in QUESTIONS}
    if name not in by_name:
        raise unknown_name("question", name, by_name)
    return by_name[name]


def arm_named(name: str) -> Arm:
    """Return an arm of any question; raise `DovetailError` for an unknown name."""
    by_name = {arm.name: arm for question in QUESTIONS for arm in question.arms}
    if name not in by_name:
        raise unknown_name("arm", name, by_name)
    return by_name[name]
