"""The questions that the study asks: which arms each compares, and which differences it tells. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.evidence.arms import ALL, ENCODER, RANDOM, Arm
from dovetail.errors import unknown_name
from dovetail.transfer.start import Start


@dataclass(frozen=True)
class Comparison:
    """Two rows whose difference is asked for, seed by seed: the first minus the second."""

    arm: str
    start: Start
    other: str
    other_start: Start


@dataclass(frozen=True)
class Question:
    """A section of the page.

    Attributes:
        name: On the command line.
        title: Of the section.
        arms: Its rows.
        comparisons: Its differences.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]


# Decoders come with DeCon alone; a base pre-trains an encoder.
SEGMENTATION: tuple[Arm, ...] = (
    Arm("from scratch", None, None, (RANDOM,)),
    Arm("slotcon", "slotcon", "slotcon", (ENCODER,)),
    Arm("decon-sl", "decon-sl", "slotcon", (ENCODER, ALL)),
    Arm("decon-ml", "decon-ml", "slotcon", (ENCODER, ALL)),
    Arm("densecl", "densecl", "densecl", (ENCODER,)),
    Arm("decon-sl-densecl", "decon-sl-densecl", "densecl", (ENCODER, ALL)),
    Arm("decon-ml-densecl", "decon-ml-densecl", "densecl", (ENCODER, ALL)),
    Arm("pixpro", "pixpro", "pixpro", (ENCODER,)),
    Arm("decon-sl-pixpro", "decon-sl-pixpro", "pixpro", (ENCODER, ALL)),
    Arm("decon-ml-pixpro", "decon-ml-pixpro", "pixpro", (ENCODER, ALL)),
    Arm("untrained encoder, frozen", None, None, (RANDOM,), encoder_lr_scale=0.0, trivial=True),
    Arm("background alone", None, None, (RANDOM,), trivial=True, cue="background"),
    Arm("colour histogram alone", None, None, (RANDOM,), trivial=True, cue="colour"),
    Arm("edges alone", None, None, (RANDOM,), trivial=True, cue="edges"),
)


def over_base_and_scratch(arms: Sequence[Arm], scratch: Arm) -> tuple[Comparison, ...]:
    """Return the differences over scratch, of a method over its base, and of its decoder over none."""
    found = []
    bases = {arm.method: arm.name for arm in arms if arm.method is not None and arm.method == arm.base}
    for arm in arms:
        if arm.method is None or arm.base is None:
            continue
        for start in arm.starts:
            if arm.method != arm.base and arm.base in bases:
                found.append(Comparison(arm.name, start, bases[arm.base], ENCODER))
            found.append(Comparison(arm.name, start, scratch.name, RANDOM))
        if ALL in arm.starts:
            found.append(Comparison(arm.name, ALL, arm.name, ENCODER))
    return tuple(found)


# Other weights of the encoder's part than 0.5, the multi-level form without dropout, the official code's quirks.
ABLATIONS: tuple[Arm, ...] = (
    *(
        Arm(
            f"decon-sl-densecl, alpha {alpha:g}",
            "decon-sl-densecl",
            "densecl",
            (ENCODER, ALL),
            options={"alpha": alpha},
        )
        for alpha in (0.0, 0.25, 0.75)
    ),
    Arm(
        "decon-ml-densecl, no dropout", "decon-ml-densecl", "densecl", (ENCODER, ALL), options={"lateral_dropout": 0.0}
    ),
    *(
        Arm(f"decon-sl, {quirk}", "decon-sl", "slotcon", (ENCODER, ALL), options={quirk: True})
        for quirk in ("reference_double_momentum_counter", "reference_frozen_prototypes")
    ),
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


# On real photographs, frozen: no fine-tuning hides what the encoder has learnt.
FROZEN: tuple[Arm, ...] = tuple(
    replace(arm, name=f"{arm.name}, frozen", measured_on="solar", trained_on="solar", measure="frozen")
    for arm in (
        Arm("untrained ViT", None, None, (RANDOM,), network="vit"),
        Arm("dino", "dino", "dino", (ENCODER,), network="vit"),
        Arm("adclr", "adclr", "dino", (ENCODER,), network="vit"),
        Arm("ibot", "ibot", "ibot", (ENCODER,), network="vit"),
        Arm("adclr-ibot", "adclr-ibot", "ibot", (ENCODER,), network="vit"),
        Arm("commoner class alone", None, None, (RANDOM,), trivial=True, cue="commoner class"),
    )
)


def over_plain_form(arms: Sequence[Arm]) -> tuple[Comparison, ...]:
    """Return the differences of arms named "PLAIN, what differs" over the plain one."""
    return tuple(Comparison(arm.name, start, arm.name.split(", ")[0], start) for arm in arms for start in arm.starts)


def joint_over_each() -> tuple[Comparison, ...]:
    """Return the differences of ADCLR with DeCon over either alone."""
    joint, halves = "adclr+decon-sl-densecl", (("adclr", ENCODER), ("dino+decon-sl-densecl", ALL))
    return tuple(Comparison(joint, ALL, half, start) for half, start in halves)


def elsewhere(title: str, suffix: str, arms: Sequence[Arm]) -> Question:
    """Return the question of what arms of the first give elsewhere; `arms` say where, `suffix` is their names' end."""
    named = tuple(replace(arm, name=f"{arm.name}, {suffix}") for arm in arms)
    scratch = next(arm for arm in named if arm.method is None)
    return Question(suffix, title, named, over_base_and_scratch(named, scratch))


_CARRIED = [arm for arm in SEGMENTATION if arm.name in ("from scratch", "densecl", "decon-sl-densecl")]
QUESTIONS: tuple[Question, ...] = (
    Question(
        "segmentation",
        "Segmentation: does joint pre-training pay?",
        SEGMENTATION,
        over_base_and_scratch(SEGMENTATION, SEGMENTATION[0]),
    ),
    Question(
        "tokens",
        "ViTs: ADCLR over its bases, and together with DeCon",
        TOKENS,
        (*over_base_and_scratch(TOKENS, TOKENS[0]), *joint_over_each()),
    ),
    Question(
        "frozen",
        "Frozen ViTs on photographs of solar cells: ADCLR over its bases",
        FROZEN,
        over_base_and_scratch(FROZEN, FROZEN[0]),
    ),
    Question("ablations", "What DeCon's options do", ABLATIONS, over_plain_form(ABLATIONS)),
    *(
        elsewhere(f"Pre-trained on `stamps`, fine-tuned on `{name}`", name, _arms)
        for name, _arms in (
            (name, [replace(arm, measured_on=name) for arm in _CARRIED]) for name in ("rooms", "corridors")
        )
    ),
    elsewhere(
        "Pre-trained with an FPN, fine-tuned as a Unet",
        "unet",
        [replace(arm, network="unet", starts=tuple(one for one in arm.starts if one != ALL)) for arm in _CARRIED],
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
