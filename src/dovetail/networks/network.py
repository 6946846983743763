"""The interface of networks: from a view to a dictionary of named taps.

The name of a tap contains its stride: `c2`..`c5` are encoder maps and `p0`..`p5` decoder maps at strides 2**0..2**5. A
ViT has `cls` (vector), `patches` (tokens), `queries` (tokens).
"""

from __future__ import annotations

import ast
import copy
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.errors import ModelError
from dovetail.heads.base import TeacherAware
from dovetail.networks.levels import Level
from dovetail.networks.random_drops import keep_everything
from dovetail.networks.undisturbed import undisturbed
from dovetail.recipe import LateralDropout, NetworkRules, Tap
from dovetail.sizes import Size
from dovetail.views.points import places
from dovetail.views.view import View

POINTS = "@points"

# Arguments of the libraries that load weights from a file or download them.
LOADS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"),
    *("weights", "weights_backbone", "encoder_weights"),
)


LONGEST_CALL = 10_000  # characters


@dataclass(frozen=True)
class Construction:
    """A Python call that builds a model: the dotted path of a function or class, and its arguments (plain values)."""

    path: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        arguments = [repr(value) for value in self.args] + [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.path}({', '.join(arguments)})"

    @classmethod
    def parse(cls, call: str) -> Construction | None:
        """Parse a call such as "timm.create_model('resnet18')"; return None for other text."""
        if len(call) > LONGEST_CALL:
            return None
        try:
            node = ast.parse(call, mode="eval").body
            if not isinstance(node, ast.Call) or not all(keyword.arg for keyword in node.keywords):
                return None  # also for **, whose names are unknown
            kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            return cls(ast.unparse(node.func), kwargs, tuple(ast.literal_eval(value) for value in node.args))
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two come from deep nesting
            return None

    def asked_to_load(self) -> list[str]:
        """Return the arguments that load weights or files, including nested ones; [] for random weights."""
        return [*_asked(self.kwargs), *_asked(self.args)]


def _asked(value: Any) -> Iterator[str]:
    """Yield the names of loading arguments in a plain value, and strings that could be paths or URLs."""
    if isinstance(value, str):
        if ":" in value or "/" in value or "\\" in value:
            yield value
    elif isinstance(value, Mapping):
        yield from (str(name) for name, inner in value.items() if name in LOADS and inner not in (None, False))
        yield from (found for name, inner in value.items() for part in (name, inner) for found in _asked(part))
    elif isinstance(value, (list, tuple, set)):
        yield from (found for inner in value for found in _asked(inner))


def at_points(tap: str) -> str:
    """Return the name of a tap that is only computed at the view's points."""
    return tap + POINTS


def split_points(taps: Collection[str]) -> tuple[list[str], set[str]]:
    """Return the taps of names, and the taps that are only needed at points."""
    points = {name.removesuffix(POINTS) for name in taps if name.endswith(POINTS)}
    return [name.removesuffix(POINTS) for name in taps], points


class Network(nn.Module, TeacherAware):
    """A model that maps a view to its taps.

    Attributes:
        model: The whole module of the user. Its `state_dict` is exported with unchanged names, including heads of the
            downstream task that no term reaches.
        taps: Available taps.
        encoder_prefix: Prefix of encoder parameters in `model.state_dict()`, such as "encoder." (may be "").
        decoder_prefixes: Prefixes of decoder parameters; empty for an encoder alone.
        constructor: The Python call that builds `model`, for the example and `model.json`.
        size_multiple: Height and width of images must be multiples of this.
        in_channels: Number of input channels.
        unreached: Parameters of `model` that do not contribute to a used tap, found by `prune`.
        frozen: Parameters of `model` with `requires_grad=False`, which are not trained.
        between: Parameters of `model` outside the decoder's prefixes that only contribute to the decoder's taps, such
            as those of a skip connection.
        rules: Options of the recipe for the network; see `following`.
        image_size: Side of the square images, or (height, width), in pixels, that the network was built for.
        watched: Set temporarily to record whole maps: taps at points are then also computed completely, without
            gradients.
        resting: Set temporarily to look at maps: laterals are then not dropped.
    """

    model: nn.Module
    taps: dict[str, Tap]
    encoder_prefix: str
    decoder_prefixes: tuple[str, ...]
    constructor: str
    size_multiple: int = 32
    in_channels: int = 3
    unreached: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    rules: NetworkRules = NetworkRules()
    image_size: Size = 224
    watched: bool = False
    resting: bool = False

    def following(self, rules: NetworkRules) -> Self:
        """Return a network around the same model that follows a recipe's rules.

        A recipe is written for the taps of a network, so the network is built first and then wrapped again. Both share
        their parameters, buffers and modules.
        """
        network = copy.copy(self)
        network.rules = rules
        return network

    @abstractmethod
    def forward(self, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the named taps for a view, computing nothing that they do not need.

        The name `at_points(tap)` requests the tap only at the view's points, [B, C, N, 1], for taps in `point_taps`.
        """

    @property
    def point_taps(self) -> Collection[str]:
        """The taps that are cheaper to compute only at points."""
        return ()

    def finished(self, found: Mapping[str, Tensor | Level], view: View, points: Collection[str]) -> dict[str, Tensor]:
        """Return maps by tap: whole levels, and levels in `points` at the view's points as `at_points(tap)`."""
        answer: dict[str, Tensor] = {}
        for tap, value in found.items():
            if not isinstance(value, Level):
                answer[tap] = value
            elif tap not in points:
                answer[tap] = value.whole()
            else:
                answer[at_points(tap)] = value.at(places(view))
                if self.watched:
                    answer[tap] = value.looked_at()
        return answer

    def blocks(self) -> list[nn.Module]:
        """Return the sequential modules that contain most of the weights; [] if there are none."""
        return []

    def prune(self, taps: Collection[str]) -> None:
        """Freeze the parameters that do not contribute to any of the `taps`.

        Distributed training needs a gradient for every trainable parameter. The frozen parameters stay in the module
        and its state, so that it can be exported completely. `frozen` parameters stay frozen.

        Raises:
            DovetailError: If all parameters that contribute to the taps are frozen.
        """
        reached = self.reached(taps)
        kept = {id(self.model.get_parameter(name)) for name in self.frozen}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in reached and id(parameter) not in kept)
        every = self.model.named_parameters(remove_duplicate=False)
        self.unreached = tuple(name for name, value in every if id(value) not in reached)
        if self.frozen and not any(parameter.requires_grad for parameter in self.parameters()):
            raise ModelError(
                f"All parameters of the {type(self.model).__name__} that the method uses have requires_grad=False; "
                "unfreeze some of them."
            )

    def reached(self, taps: Collection[str]) -> set[int]:
        """Return the `id` of every parameter that contributes to the `taps`, from a small forward and backward pass."""
        parameters = [value for value in self.parameters() if value.is_floating_point()]
        flags = [value.requires_grad for value in parameters]
        for value in parameters:
            value.requires_grad_(True)
        with undisturbed(self), torch.enable_grad():
            self.eval()  # BatchNorm in training fails for one image if a decoder pools to a single cell
            outputs = self(self.probe_view(), taps)
            total = torch.stack([value.float().sum() for value in outputs.values()]).sum()
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for value, flag in zip(parameters, flags, strict=True):
            value.requires_grad_(flag)
        return {id(value) for value, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    def paths(self) -> dict[str, Any]:
        """Return the paths of the parts of a custom module, as plain values; empty for other models."""
        return {}

    @property
    def decoder_names(self) -> tuple[str, ...]:
        """Prefixes of the names in `model.state_dict()` that belong to the decoder, including `between`."""
        return self.decoder_prefixes + self.between

    def become_teacher(self) -> None:
        """Disable stochastic depth and dropout, so that targets come from the whole network (DINO).

        Lateral dropout stays enabled.
        """
        keep_everything(self)

    def probe_view(self) -> View:
        """Return a small image of zeros for trial runs."""
        side = 2 * self.size_multiple
        return View(
            pixels=torch.zeros([1, self.in_channels, side, side]),
            box=torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
            flipped=torch.zeros(1, dtype=torch.bool),
            source_px=torch.full((1, 2), float(side)),
        )

    def drop_laterals(self, laterals: list[Tensor]) -> list[Tensor]:
        """Apply lateral dropout to decoder inputs, finest first; the last one, the deepest, is never dropped.

        It is active in the student and the teacher, as in DeCon's code.
        """
        rule = self.rules.lateral_dropout
        if rule is None or rule.p == 0 or self.resting:
            return laterals
        return [drop_lateral(lateral, rule) for lateral in laterals[:-1]] + laterals[-1:]


def drop_lateral(lateral: Tensor, rule: LateralDropout) -> Tensor:
    """Drop channels of a lateral [B, C, H, W], or the whole lateral."""
    if rule.kind == "channel":
        return F.dropout2d(lateral, rule.p, training=True)
    keep = (lateral.new_empty(()).uniform_() >= rule.p).to(lateral.dtype)  # one draw for the whole batch
    return lateral * keep


def decoder_taps(taps: Mapping[str, Tap]) -> list[str]:
    """Return the names of the decoder's maps, finest first."""
    maps = [(tap.stride, name) for name, tap in taps.items() if tap.part == "decoder" and tap.kind == "map"]
    return [name for _, name in sorted(maps)]


def deepest_encoder_tap(taps: Mapping[str, Tap]) -> str:
    """Return the name of the encoder's map with the largest stride."""
    maps = [(tap.stride, name) for name, tap in taps.items() if tap.part == "encoder" and tap.kind == "map"]
    if not maps:
        raise ModelError(f"The model has no encoder map to pre-train, only {', '.join(taps)}; choose another method.")
    return max(maps)[1]


def finest_decoder_tap(taps: Mapping[str, Tap]) -> str:
    """Return the name of the decoder's finest map; raise `ModelError` if there is no decoder."""
    names = decoder_taps(taps)
    if not names:
        raise ModelError(
            f"The model has no decoder (its taps are {', '.join(taps)}); choose one with a decoder, such as "
            "'smp/unet/resnet50' or 'timm/resnet50+fpn'."
        )
    return names[0]
