"""Recipes: a method as plain frozen data. Named terms, views, schedules and optimiser rules; no tensors, no code paths.

`dovetail show METHOD` prints one; every run saves the one it used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from dovetail.errors import RecipeError
from dovetail.heads.base import HeadSpec, Kind
from dovetail.heads.raw import RawHeadSpec
from dovetail.names import check_names
from dovetail.objectives.objective import ObjectiveSpec
from dovetail.schedules import Cosine, Schedule, WarmupCosine
from dovetail.views.plan import ViewPlan
from dovetail.views.view import Role

DecoderPadding = Literal["zeros", "reflect"]


@dataclass(frozen=True)
class Tap:
    """A named output of a network: `channels` wide, one cell per `stride` pixels, from the encoder or the decoder."""

    channels: int
    stride: int
    kind: Kind
    part: Literal["encoder", "decoder"]


@dataclass(frozen=True)
class SameHead:
    """A term uses the head of another term of this recipe (iBOT's shared head, ADCLR's queries).

    Attributes:
        term: The term that owns the head.
        output: Which of the head's outputs, for heads with several (iBOT's prototypes of patches); "" for its first.
    """

    term: str
    output: str = ""


@dataclass(frozen=True)
class Cells:
    """Which cells of a map a term looks at; all of them by default.

    Attributes:
        grid: Maps larger than grid x grid cells are average-pooled to it before the head.
        points: The map is sampled, bilinearly and before the head, at so many points of each view (`ViewPlan.points`).
        border: So many cells at each edge are left out, as padding tells them where they are; small maps keep at least
            one cell in the middle. Sampled points keep away from the edges by `PointSpec.margin` instead.
    """

    grid: int | None = None
    points: int | None = None
    border: int = 0

    def __post_init__(self) -> None:
        if self.points is not None and (self.grid is not None or self.border):
            raise RecipeError("A term's cells are either sampled at points, or pooled to a grid without a border.")


@dataclass(frozen=True)
class Target:
    """What the teacher answers a term with, where that is another tap than the student's, of other views.

    Attributes:
        tap: The encoder's tap that the teacher reads; the decoder then is not run for this term in the teacher.
        roles: The roles of the views that the teacher reads it from; `Recipe.teacher_views` has to have them.
    """

    tap: str
    roles: tuple[Role, ...] = ("local",)


@dataclass(frozen=True)
class Term:
    """One objective on one tap with one weight.

    Attributes:
        name: Its name in the log, such as "encoder" or "decoder.p2".
        tap: The tap it reads.
        head: The head between tap and objective, or another term's.
        objective: What compares student and teacher.
        weight: Its factor in the sum of losses.
        cells: Which cells of a map it looks at.
        checkpoint_head: Recompute the head in the backward pass instead of keeping its activations.
        roles: The roles of the views it sees.
        target: What the teacher gives to it; None for the same tap of the same views. With a target the head has to be
            without weights (`RawHeadSpec`), and `cells` are those of the student alone.
    """

    name: str
    tap: str
    head: HeadSpec | SameHead
    objective: ObjectiveSpec
    weight: Schedule = 1.0
    cells: Cells = Cells()
    checkpoint_head: bool = False
    roles: tuple[Role, ...] = ("global",)
    target: Target | None = None


@dataclass(frozen=True)
class LateralDropout:
    """Dropout on what the decoder takes from all encoder maps but the deepest (DeCon-ML), in both branches.

    kind "channel": each channel of each image falls out with probability `p`, the rest are scaled by 1/(1-p).
    kind "path": the whole lateral falls out for the whole batch, without scaling.
    """

    p: float = 0.0
    kind: Literal["channel", "path"] = "channel"


@dataclass(frozen=True)
class QueryRule:
    """How query tokens (ADCLR, PQCL) go through a ViT.

    attention "unidirectional": a query attends to the raw tokens and to itself, raw tokens only to raw tokens.
    "query_to_query": queries attend to each other as well. "bidirectional": everything attends to everything.
    content "pixels": a query's tokens are the patches of its crop, in both branches, and its vector is their mean
    (ADCLR). "mask": the student's tokens are the mask token at the places of the crop's patches; the teacher encodes
    the crop by itself, as an image, and answers with its patches; tokens are compared one by one (PQCL).
    positions "none": queries have no position. "crop": all tokens of a query get the view's position at the centre of
    its crop. "sincos": each token has a sine-cosine position at its own place, inside the view or not, and the model's
    own positions are sine-cosine ones too, which do not learn. "learned": each token gets the model's own position at
    its place, or at the view's border where it lies outside.
    tokens_per_side: Patches on a side of a query, which is as many tokens squared. They attend to each other.
    reference_positions: Places as in PQCL's official code: the corners of patches, and not mirrored where the view is.
    """

    attention: Literal["unidirectional", "bidirectional", "query_to_query"] = "unidirectional"
    positions: Literal["none", "crop", "sincos", "learned"] = "none"
    tokens_per_side: int = 1
    content: Literal["pixels", "mask"] = "pixels"
    reference_positions: bool = False


@dataclass(frozen=True)
class NetworkRules:
    """What a recipe asks of a network: it is built with these, see `Network.following`.

    lateral_dropout: On what the decoder takes from the encoder; None for none.
    query_rule: How query tokens go through a ViT.
    masks: Whether views come with masks of patches.
    official_positions: Whether a ViT's positions are resampled to other sizes as in DINO's code, not as in timm.
    """

    lateral_dropout: LateralDropout | None = None
    query_rule: QueryRule = QueryRule()
    masks: bool = False
    official_positions: bool = False


@dataclass(frozen=True)
class ParameterRule:
    """Named exception for parameters: those whose name matches the regular expression `pattern` on the student.

    Names begin with "network.", "heads.TERM." or "objectives.TERM.".
    """

    pattern: str
    lr_scale: float = 1.0
    constant_lr: bool = False  # SimSiam's predictor: no schedule
    weight_decay: bool = True
    adapt: bool = True  # LARS: trust ratio
    frozen_epochs: float = 0  # DINO: no gradient in the first epochs
    one_dimensional: bool = False  # only parameters with one dimension (Barlow Twins: biases and norms)


@dataclass(frozen=True)
class OptimiserSpec:
    """Optimiser and learning rate. The peak rate is `base_lr * global batch / 256`.

    Attributes:
        name: lars, lamb, sgd or adamw.
        base_lr: Peak learning rate at a global batch of 256 images.
        weight_decay: A number or a schedule.
        momentum: Of LARS and SGD.
        warmup_epochs: Epochs of linear warm-up.
        warmup_start: Learning rate at step 0 as a share of the peak.
        final_lr: Absolute learning rate at the end of the cosine.
        final_share: Share of the peak that is added to it.
        peak_twice: See `WarmupCosine`.
        decay_one_dimensional: Whether biases and norm parameters are decayed (and, by LARS, adapted).
        clip_norm: Largest gradient norm, None for no clipping.
        clip_each_parameter: Clip each tensor by itself (DINO) instead of all together.
        rules: Exceptions, first match counts.
        encoder_lr_scale: Factor of the learning rate of the encoder's weights, beside that of a rule.
        decoder_lr_scale: The same of the decoder's weights; heads have neither.
        layer_decay: Factor from the rate of a layer of the encoder to that of the layer before it.
    """

    name: Literal["lars", "lamb", "sgd", "adamw"]
    base_lr: float
    weight_decay: Schedule
    momentum: float = 0.9
    warmup_epochs: float = 0.0
    warmup_start: float = 0.0
    final_lr: float = 0.0
    final_share: float = 0.0
    peak_twice: bool = False
    decay_one_dimensional: bool = True
    clip_norm: float | None = None
    clip_each_parameter: bool = False
    rules: tuple[ParameterRule, ...] = ()
    encoder_lr_scale: float = 1.0
    decoder_lr_scale: float = 1.0
    layer_decay: float = 1.0

    def peak_lr(self, global_batch: int) -> float:
        """Return the peak learning rate by linear scaling."""
        return self.base_lr * global_batch / 256

    def lr_schedule(self, peak: float) -> WarmupCosine:
        """Return the learning rate's schedule for a given peak."""
        end = self.final_lr + peak * self.final_share
        return WarmupCosine(peak * self.warmup_start, peak, end, self.warmup_epochs, self.peak_twice)


@dataclass(frozen=True)
class EncoderInit:
    """How a method's source begins an encoder with random weights; None leaves the library's.

    Attributes:
        fan: Kaiming's normal distribution of a ResNet's convolutions for the fan "in" or "out", the libraries' own.
        zero_gamma: Whether the last norm of every residual block of a ResNet begins with zeros, or with ones.
        class_token_std: Standard deviation of a ViT's class token.
    """

    fan: Literal["in", "out"] | None = None
    zero_gamma: bool | None = None
    class_token_std: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A method, complete: what is compared, on which views, and how it is optimised.

    Attributes:
        name: The method's name.
        terms: At least one; weights need not sum to one.
        views: The views of one image in one step.
        optimiser: Optimiser and learning rate.
        teacher_momentum: Of the moving teacher; None for methods whose second branch is the student itself without
            gradient (SimSiam) or that have none (SimCLR, Barlow Twins, VICReg).
        teacher_views: The roles of views that the teacher sees.
        teacher_buffers: BatchNorm statistics of the teacher: "own" (from its own forwards), "copied" from the
            student at every step, or "averaged" like the parameters.
        encoder_init: How a random encoder begins; None for as its library does.
        forward_views: One forward pass "per_view", or all views of one size "per_size" (BatchNorm sees them together).
        lateral_dropout: See `LateralDropout`.
        teacher_lateral_dropout: Whether it acts in the teacher too.
        decoder_padding: How the decoder's convolutions pad while pre-training, in both branches: with "zeros", as the
            model does, or by "reflect".
        query_rule: See `QueryRule`.
        official_positions: Whether a ViT's positions are resampled to local views as in DINO's code, not as in timm.
        export: Which branch is exported.
        epochs: The paper's number of epochs at its scale.
        batch_size: The paper's global batch.
        shuffle_batch_norm: Shuffle the teacher's images across ranks, so that BatchNorm leaks nothing (MoCo, DenseCL).
        reference_double_momentum_counter: DeCon's official counter runs at twice the pace: the momentum reaches 1
            at half of the run and falls back to its start. Default off.
        reference_frozen_teacher: Regular expression of teacher parameters (as "heads.TERM....") that never move, as
            the decoder's prototypes in DeCon's official code. Default none.
    """

    name: str
    terms: tuple[Term, ...]
    views: ViewPlan
    optimiser: OptimiserSpec
    teacher_momentum: Schedule | None = field(default_factory=lambda: Cosine(0.99, 1.0))
    teacher_views: tuple[Role, ...] = ("global",)
    teacher_buffers: Literal["own", "copied", "averaged"] = "own"
    encoder_init: EncoderInit | None = None
    forward_views: Literal["per_view", "per_size"] = "per_view"
    lateral_dropout: LateralDropout | None = None
    teacher_lateral_dropout: bool = True
    decoder_padding: DecoderPadding = "zeros"
    query_rule: QueryRule = QueryRule()
    official_positions: bool = False
    export: Literal["student", "teacher"] = "teacher"
    epochs: int = 100
    batch_size: int = 256
    shuffle_batch_norm: bool = False
    reference_double_momentum_counter: bool = False
    reference_frozen_teacher: str | None = None

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if not names:
            raise RecipeError(f"Recipe {self.name!r} has no term; give it at least one.")
        if len(set(names)) != len(names):
            raise RecipeError(f"Recipe {self.name!r} names a term twice: {', '.join(names)}.")
        check_names(self)
        for term in self.terms:
            self.check_points(term)

    @property
    def network_rules(self) -> NetworkRules:
        """What the recipe asks of its network."""
        masks = self.views.masks is not None
        return NetworkRules(self.lateral_dropout, self.query_rule, masks, self.official_positions)

    @property
    def one_way(self) -> bool:
        """Whether the student needs to see the first view alone and the teacher the second, for all terms."""
        two = len(self.views.views) == 2 and self.teacher_momentum is not None
        return two and all(term.objective.one_way for term in self.terms)

    def head_of(self, term: Term) -> HeadSpec:
        """Return the head spec that `term` uses, its own or the one it shares."""
        if not isinstance(term.head, SameHead):
            return term.head
        owner = next((other for other in self.terms if other.name == term.head.term), None)
        if owner is None or isinstance(owner.head, SameHead):
            raise RecipeError(f"Term {term.name!r} shares the head of {term.head.term!r}, which has none of its own.")
        return owner.head

    def check(self, taps: dict[str, Tap]) -> None:
        """Raise `RecipeError` for a term on a tap that is missing or of the wrong kind."""
        for term in self.terms:
            if term.tap not in taps:
                raise RecipeError(f"Term {term.name!r} reads tap {term.tap!r}; the model has {', '.join(taps)}.")
            kind, takes = taps[term.tap].kind, self.head_of(term).kinds
            if kind not in takes:
                raise RecipeError(f"Term {term.name!r} needs a {' or a '.join(takes)}; {term.tap} is a {kind}.")
            self.check_target(term, taps)

    def check_target(self, term: Term, taps: dict[str, Tap]) -> None:
        """Raise `RecipeError` for a target that the teacher cannot give."""
        target, head = term.target, self.head_of(term)
        if target is None:
            return
        if target.tap not in taps or taps[target.tap].part != "encoder" or taps[target.tap].kind not in head.kinds:
            known = [name for name, tap in taps.items() if tap.part == "encoder" and tap.kind in head.kinds]
            raise RecipeError(
                f"Term {term.name!r} predicts {target.tap!r}, which is no map of the encoder; choose one of "
                f"{', '.join(known)}."
            )
        if not isinstance(head, RawHeadSpec):
            raise RecipeError(f"Term {term.name!r} has a target, so its head is a RawHeadSpec and not {head}.")
        if self.teacher_momentum is None or not set(target.roles) <= set(self.teacher_views):
            raise RecipeError(
                f"Term {term.name!r} has a target of {' and '.join(target.roles)} views; give the recipe a teacher "
                "that sees them."
            )

    def check_points(self, term: Term) -> None:
        """Raise `RecipeError` for a term that samples points which the views do not have, or cannot compare them."""
        count, region, drawn = term.cells.points, term.objective.points, self.views.points
        if count is None:
            return
        if region is None:
            raise RecipeError(f"Term {term.name!r} compares whole maps, so it cannot sample points of them.")
        if drawn is None or (drawn.count, drawn.region) != (count, region):
            raise RecipeError(
                f"Term {term.name!r} samples {count} points of each view's {region}; give the recipe's views "
                f"points=PointSpec({count}, {region!r})."
            )

    def with_terms(self, *terms: Term) -> Recipe:
        """Return the recipe with other terms."""
        return replace(self, terms=terms)
