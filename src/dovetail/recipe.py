"""Recipes: a method as plain frozen data, with named terms, views, schedules and optimiser rules, but no tensors.

`dovetail show METHOD` prints a recipe. Every run saves the recipe that it used.
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
    """A named output of the encoder or decoder, with its number of channels and its stride in pixels."""

    channels: int
    stride: int
    kind: Kind
    part: Literal["encoder", "decoder"]


@dataclass(frozen=True)
class SameHead:
    """The head of another term of the same recipe (iBOT's shared head, ADCLR's queries).

    Attributes:
        term: Name of the term that owns the head.
        output: Name of the output, for heads with several outputs (iBOT's patch prototypes). "" is the first one.
    """

    term: str
    output: str = ""


@dataclass(frozen=True)
class Cells:
    """The cells of a feature map that a term uses. By default, all cells are used.

    Attributes:
        grid: Average-pool maps that are larger than grid x grid cells to this size before the head.
        points: Sample the map bilinearly at this number of points in each view (`ViewPlan.points`) before the head.
        border: Number of cells to drop at each edge, where padding reveals the position. Small maps keep at least one
            cell in the middle. For sampled points, use `PointSpec.margin` instead.
        segments: Average the map over this number of sampled segments in each view (`ViewPlan.segments`) before the
            head.
    """

    grid: int | None = None
    points: int | None = None
    border: int = 0
    segments: int | None = None

    def __post_init__(self) -> None:
        if self.segments is not None and (self.grid is not None or self.points is not None):
            raise RecipeError("Cells with segments cannot have a grid or points; specify one of them.")
        if self.points is not None and (self.grid is not None or self.border):
            raise RecipeError("Cells with points cannot have a grid or a border; specify either points or the others.")


@dataclass(frozen=True)
class Target:
    """The teacher's output for a term, if it comes from another tap and other views than the student's.

    Attributes:
        tap: Encoder tap of the teacher. The teacher does not run its decoder for this term.
        roles: Roles of the views that the teacher sees for this term. They must be in `Recipe.teacher_views`.
    """

    tap: str
    roles: tuple[Role, ...] = ("local",)


@dataclass(frozen=True)
class Term:
    """One objective on one tap with one weight.

    Attributes:
        name: Name in the log, such as "encoder" or "decoder.p2".
        tap: Name of the tap.
        head: Head between tap and objective, or the head of another term.
        objective: Loss that compares student and teacher.
        weight: Weight of the loss.
        cells: Cells of the feature map to use.
        checkpoint_head: Recompute the head in the backward pass to save memory.
        roles: Roles of the views to use.
        target: Output of the teacher. None is the same tap and the same views. A target requires a head without weights
            (`RawHeadSpec`), and `cells` then only apply to the student.
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
    """Dropout on the lateral connections from all encoder maps but the deepest to the decoder (DeCon-ML).

    It acts in both branches. With kind "channel", each channel of each image is dropped with probability `p`, and the
    others are scaled by 1/(1-p). With kind "path", a lateral connection is dropped for the whole batch, unscaled.
    """

    p: float = 0.0
    kind: Literal["channel", "path"] = "channel"


@dataclass(frozen=True)
class QueryRule:
    """How a ViT processes query tokens (ADCLR, PQCL).

    Attributes:
        attention: "unidirectional": queries attend to the image tokens and to themselves, and image tokens only to
            image tokens. "query_to_query": queries attend to each other, too. "bidirectional": full attention.
        positions: "none": queries have no position embedding. "crop": all tokens of a query have the embedding at the
            centre of the crop. "sincos": each token has a sine-cosine embedding at its position, inside or outside the
            view; the model's embeddings are fixed sine-cosine embeddings, too. "learned": each token has the model's
            embedding at its position, or at the border of the view if it is outside.
        tokens_per_side: Number of patches along a side of a query, which has the square of this number of tokens. They
            attend to each other.
        content: "pixels": the tokens of a query are the patches of its crop in both branches, and its vector is their
            mean (ADCLR). "mask": the student's tokens are mask tokens at the positions of the crop's patches, the
            teacher encodes the crop as a separate image, and tokens are compared one by one (PQCL).
        reference_positions: Use the positions of PQCL's official code: corners of patches, not mirrored in flipped
            views.
    """

    attention: Literal["unidirectional", "bidirectional", "query_to_query"] = "unidirectional"
    positions: Literal["none", "crop", "sincos", "learned"] = "none"
    tokens_per_side: int = 1
    content: Literal["pixels", "mask"] = "pixels"
    reference_positions: bool = False


@dataclass(frozen=True)
class NetworkRules:
    """Requirements of a recipe on the network, which `Network.following` applies.

    Attributes:
        lateral_dropout: Dropout between encoder and decoder, or None.
        query_rule: How a ViT processes query tokens.
        masks: Whether views have patch masks.
        official_positions: Resample the position embeddings of a ViT as in DINO's code instead of timm's.
    """

    lateral_dropout: LateralDropout | None = None
    query_rule: QueryRule = QueryRule()
    masks: bool = False
    official_positions: bool = False


@dataclass(frozen=True)
class ParameterRule:
    """Optimiser settings for the student's parameters whose names match the regular expression `pattern`.

    Names start with "network.", "heads.TERM." or "objectives.TERM.".
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
    """Optimiser and learning rate schedule. The peak learning rate is `base_lr * global batch / 256`.

    Attributes:
        name: lars, lamb, sgd or adamw.
        base_lr: Peak learning rate at a global batch size of 256.
        weight_decay: Number or schedule.
        momentum: Momentum of LARS and SGD.
        warmup_epochs: Epochs of linear warm-up.
        warmup_start: Learning rate at step 0, relative to the peak.
        final_lr: Absolute learning rate at the end of the cosine.
        final_share: Fraction of the peak that is added to `final_lr`.
        peak_twice: See `WarmupCosine`.
        decay_one_dimensional: Apply weight decay (and LARS's trust ratio) to biases and norm parameters, too.
        clip_norm: Largest gradient norm, or None for no clipping.
        clip_each_parameter: Clip the gradient of each tensor separately (DINO) instead of the global norm.
        rules: Rules for parameters. The first match is used.
        encoder_lr_scale: Factor of the encoder's learning rate, in addition to that of a rule.
        decoder_lr_scale: Factor of the decoder's learning rate. Heads have neither factor.
        layer_decay: Factor of the learning rate from each encoder layer to the one before it.
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
        """Return the learning rate schedule for a peak."""
        end = self.final_lr + peak * self.final_share
        return WarmupCosine(peak * self.warmup_start, peak, end, self.warmup_epochs, self.peak_twice)


@dataclass(frozen=True)
class EncoderInit:
    """Initialisation of a random encoder as in the method's official code. None keeps the library's initialisation.

    Attributes:
        fan: Kaiming normal initialisation of a ResNet's convolutions with fan "in" or "out" (the libraries use "out").
        zero_gamma: Initialise the last norm of every residual block of a ResNet with zeros (True) or ones (False).
        class_token_std: Standard deviation of a ViT's class token.
    """

    fan: Literal["in", "out"] | None = None
    zero_gamma: bool | None = None
    class_token_std: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A complete method: terms, views and optimiser.

    Attributes:
        name: Name of the method.
        terms: One or more terms. Their weights need not sum to one.
        views: Views of one image in one step.
        optimiser: Optimiser and learning rate schedule.
        teacher_momentum: Momentum of the teacher. None for methods without a teacher (SimCLR, Barlow Twins, VICReg), or
            whose second branch is the student without gradient (SimSiam).
        teacher_views: Roles of the views that the teacher sees.
        teacher_buffers: BatchNorm statistics of the teacher: "own" (from its own forward passes), "copied" from the
            student at every step, or "averaged" like the parameters.
        encoder_init: Initialisation of a random encoder. None keeps the library's.
        forward_views: One forward pass "per_view", or one for all views of a size ("per_size", shared by BatchNorm).
        lateral_dropout: See `LateralDropout`.
        teacher_lateral_dropout: Whether lateral dropout acts in the teacher, too.
        decoder_padding: Padding of the decoder's convolutions during pre-training, in both branches: "zeros" or
            "reflect".
        query_rule: See `QueryRule`.
        official_positions: Resample a ViT's position embeddings to local views as in DINO's code instead of timm's.
        export: Branch to export.
        epochs: Number of epochs in the paper.
        batch_size: Global batch size in the paper.
        shuffle_batch_norm: Shuffle the teacher's images across ranks, so that BatchNorm leaks nothing (MoCo, DenseCL).
        reference_double_momentum_counter: Advance the momentum twice per step as in DeCon's official code: it reaches 1
            halfway through the run and falls back to its start. Off by default.
        reference_frozen_teacher: Regular expression of teacher parameters ("heads.TERM....") that are not updated, such
            as the decoder's prototypes in DeCon's official code. None by default.
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
            raise RecipeError(f"Recipe {self.name!r} has no terms; add at least one.")
        if len(set(names)) != len(names):
            raise RecipeError(f"Recipe {self.name!r} has two terms of the same name ({', '.join(names)}); rename one.")
        check_names(self)
        for term in self.terms:
            self.check_points(term)
            self.check_side(term)

    @property
    def network_rules(self) -> NetworkRules:
        """Requirements of the recipe on its network."""
        masks = self.views.masks is not None
        return NetworkRules(self.lateral_dropout, self.query_rule, masks, self.official_positions)

    @property
    def one_way(self) -> bool:
        """Whether all terms only need the student on the first view and the teacher on the second view."""
        two = len(self.views.views) == 2 and self.teacher_momentum is not None
        return two and all(term.objective.one_way for term in self.terms)

    def head_of(self, term: Term) -> HeadSpec:
        """Return the head spec of `term`, which may belong to another term."""
        if not isinstance(term.head, SameHead):
            return term.head
        owner = next((other for other in self.terms if other.name == term.head.term), None)
        if owner is None or isinstance(owner.head, SameHead):
            raise RecipeError(f"Term {term.name!r} shares the head of {term.head.term!r}, which does not own a head.")
        return owner.head

    def check(self, taps: dict[str, Tap]) -> None:
        """Raise `RecipeError` if the tap of a term is missing or has the wrong kind."""
        for term in self.terms:
            if term.tap not in taps:
                raise RecipeError(
                    f"Term {term.name!r} needs the tap {term.tap!r}, but the model only has {', '.join(taps)}."
                )
            kind, takes = taps[term.tap].kind, self.head_of(term).kinds
            if kind not in takes:
                raise RecipeError(f"Term {term.name!r} needs a {' or a '.join(takes)}, but {term.tap} is a {kind}.")
            self.check_target(term, taps)

    def check_target(self, term: Term, taps: dict[str, Tap]) -> None:
        """Raise `RecipeError` if the teacher cannot provide the target of a term."""
        target, head = term.target, self.head_of(term)
        if target is None:
            return
        if target.tap not in taps or taps[target.tap].part != "encoder" or taps[target.tap].kind not in head.kinds:
            known = [name for name, tap in taps.items() if tap.part == "encoder" and tap.kind in head.kinds]
            raise RecipeError(
                f"Term {term.name!r} has the target {target.tap!r}, which is not an encoder feature map; choose one of "
                f"{', '.join(known)}."
            )
        if not isinstance(head, RawHeadSpec):
            raise RecipeError(f"Term {term.name!r} has a target, so its head must be a RawHeadSpec, not {head}.")
        if self.teacher_momentum is None or not set(target.roles) <= set(self.teacher_views):
            raise RecipeError(
                f"Term {term.name!r} has a target on {' and '.join(target.roles)} views, which the teacher does not "
                "see; add them to teacher_views."
            )

    def check_points(self, term: Term) -> None:
        """Raise `RecipeError` if a term samples points that the views lack, or its objective does not support them."""
        count, region, drawn = term.cells.points, term.objective.points, self.views.points
        if count is None:
            return
        if region is None:
            raise RecipeError(f"Term {term.name!r} compares whole feature maps, so it cannot sample points.")
        if drawn is None or (drawn.count, drawn.region) != (count, region):
            raise RecipeError(
                f"Term {term.name!r} samples {count} points in the {region} of each view; set "
                f"points=PointSpec({count}, {region!r}) in the views of the recipe."
            )

    def check_side(self, term: Term) -> None:
        """Raise `RecipeError` if a term needs segments or other side data that the views lack."""
        count, drawn = term.cells.segments, self.views.segments
        if count is not None and (drawn is None or drawn.count != count):
            raise RecipeError(
                f"Term {term.name!r} averages its maps over {count} segments; set segments=SegmentSpec({count}) in the "
                "views of the recipe."
            )
        missing = [name for name in term.objective.side if name not in self.views.side]
        if missing:
            raise RecipeError(
                f"Term {term.name!r} needs the side data {', '.join(missing)}; add the names to side in the views of "
                "the recipe."
            )

    def with_terms(self, *terms: Term) -> Recipe:
        """Return the recipe with other terms."""
        return replace(self, terms=terms)
