"""Networks whose encoder and decoder return stages: the base of all CNN adapters.

An adapter runs its encoder and decoder and names their stages. The taps, their channels and strides are determined by a
trial run, so they always match the outputs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dovetail.errors import ModelError, unknown_name
from dovetail.networks.levels import Level, computable_at_points
from dovetail.networks.network import Construction, Network, split_points
from dovetail.networks.probe import trial_view
from dovetail.networks.undisturbed import undisturbed
from dovetail.recipe import Tap
from dovetail.sizes import Size, multiple_of, sides, size_in_words
from dovetail.views.view import View

USUAL_STRIDE = 32  # of the deepest map

Stages = dict[str, Any]
"""Maps [B, C, H, W] by stage; levels of a feature pyramid are a `Level`."""


class StagedNetwork(Network):
    """A network that runs its encoder, then its decoder, as far as the taps need.

    If two stages have the same stride, the name (`c4` or `p4`) refers to the later one: the deeper stage of a dilated
    encoder, and the stage closer to the output of a decoder.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        construction: Construction | None,
        encoder_prefix: str,
        decoder_prefixes: tuple[str, ...],
        in_channels: int,
        image_size: Size,
    ) -> None:
        """Wrap `model` and run it once with an image of `image_size`, a side or (height, width) in pixels."""
        super().__init__()
        self.model = model
        self.constructor = str(construction) if construction else f"{type(model).__module__}.{type(model).__qualname__}"
        self.encoder_prefix, self.decoder_prefixes = encoder_prefix, decoder_prefixes
        self.in_channels, self.image_size = in_channels, image_size
        self.taps: dict[str, Tap] = {}
        self.stages: dict[str, str] = {}
        self._point_taps: set[str] = set()
        self._discover()
        self.size_multiple = max(tap.stride for tap in self.taps.values())

    @abstractmethod
    def run(
        self, pixels: Tensor, encoder: Collection[str] | None, decoder: Collection[str] | None
    ) -> tuple[Stages, Stages]:
        """Return the requested stages of encoder and decoder: all for None, none for ()."""

    def forward(self, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the named taps for a view; computes only what they need."""
        taps, points = split_points(taps)
        for tap in taps:
            if tap not in self.taps:
                raise unknown_name("tap", tap, self.taps, error=ModelError)
        parts: dict[str, list[str]] = {"encoder": [], "decoder": []}
        for tap in taps:
            parts[self.taps[tap].part].append(tap)
        wanted = {part: [self.stages[tap] for tap in names] for part, names in parts.items()}
        features, maps = self.run(view.pixels, wanted["encoder"], wanted["decoder"])
        found = {tap: (maps if tap in parts["decoder"] else features)[self.stages[tap]] for tap in taps}
        return self.finished(found, view, points)

    @property
    def point_taps(self) -> Collection[str]:
        """The levels of a feature pyramid."""
        return self._point_taps

    def probe_view(self) -> View:
        """Return an image of noise with the size that the network was built for."""
        return trial_view(self, size_px=self.image_size, batch_size=1)

    def _discover(self) -> None:
        """Set `taps` and `stages` from a forward pass of a black image."""
        like = next(self.model.parameters())
        pixels = like.new_zeros(1, self.in_channels, *sides(self.image_size))
        was_training = self.model.training
        try:
            with undisturbed(self.model), torch.no_grad():
                self.model.eval()
                features, maps = self.run(pixels, None, None)
                levels = {key: value for key, value in maps.items() if isinstance(value, Level)}
                at_points = {key for key, value in levels.items() if computable_at_points(value.block)}
                maps |= {key: level.whole() for key, level in levels.items()}
            self._declare(features, "encoder")
            self._declare(maps, "decoder")
            self._point_taps = {
                name for name, tap in self.taps.items() if tap.part == "decoder" and self.stages[name] in at_points
            }
        except (RuntimeError, ValueError, AssertionError) as error:
            fitting, shown = multiple_of(self.image_size, USUAL_STRIDE), size_in_words(self.image_size)
            reason, other = f" ({_first_line(error)})", "choose another image size, such as 224"
            if fitting != self.image_size:  # torch's reason is about sizes of maps
                reason, other = "", f"choose multiples of {USUAL_STRIDE}, such as {size_in_words(fitting)}"
            raise ModelError(f"{self.constructor} does not support images of {shown} px{reason}; {other}.") from error
        finally:
            self.model.train(was_training)
        if not self.taps:
            raise ModelError(f"{self.constructor} returns no feature map; choose another model.")

    def _declare(self, stages: Mapping[str, Tensor], part: Literal["encoder", "decoder"]) -> None:
        found: dict[str, tuple[str, Tap]] = {}
        for key, value in stages.items():
            if not is_map(value) or key == INPUT:
                continue
            tap = tap_of(value, part, self.image_size)
            found[tap_name(tap)] = (key, tap)
        for name, (key, tap) in sorted(found.items()):
            self.taps[name], self.stages[name] = tap, key


class TwoPartNetwork(StagedNetwork):
    """A staged network whose encoder and decoder run one after the other."""

    @abstractmethod
    def encode(self, pixels: Tensor, wanted: Collection[str] | None) -> Stages:
        """Return the requested stages of the encoder, finest first; all for None."""

    @abstractmethod
    def decode(self, stages: Stages, wanted: Collection[str] | None) -> Stages:
        """Return the decoder's stages in the order of computation, from all stages of the encoder."""

    def run(
        self, pixels: Tensor, encoder: Collection[str] | None, decoder: Collection[str] | None
    ) -> tuple[Stages, Stages]:
        """Run the encoder, completely if the decoder needs it, and then the decoder."""
        deep = decoder is None or bool(decoder)
        features = self.encode(pixels, None if deep else encoder)
        return features, self.decode(features, decoder) if deep else {}


INPUT = "input"


def is_map(value: object) -> bool:
    """Whether a value is a map [B, C, H, W] with at least one channel."""
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] > 0


def tap_of(value: Tensor, part: Literal["encoder", "decoder"], image_size: Size) -> Tap:
    """Return the tap of a map [B, C, H, W] for an image of `image_size` px; strides are powers of two."""
    return Tap(channels=value.shape[1], stride=stride_of(value.shape[-1], sides(image_size)[1]), kind="map", part=part)


def stride_of(cells: int, side_px: int) -> int:
    """Return the power of two closest to the pixels of a cell."""
    return int(2 ** max(round(math.log2(side_px / max(cells, 1))), 0))


def tap_name(tap: Tap) -> str:
    """Return `c3` or `p3` for a tap of stride 8 of the encoder or decoder."""
    return f"{'c' if tap.part == 'encoder' else 'p'}{int(math.log2(tap.stride))}"


def run_children(children: Iterable[tuple[str, nn.Module]], pixels: Tensor, wanted: Collection[str] | None) -> Stages:
    """Run modules in sequence up to the last requested one; return the requested outputs, or all."""
    left = None if wanted is None else set(wanted)
    stages: Stages = {}
    for name, child in children:
        if left is not None and not left:
            break
        pixels = child(pixels)
        if left is None or name in left:
            stages[name] = pixels
        if left is not None:
            left.discard(name)
    return stages


class _EnoughError(Exception):
    """Raised after the last requested output, to skip the rest."""


def record(
    modules: Mapping[str, nn.Module], run: Callable[[], Any], *, inputs: Mapping[str, nn.Module] | None = None
) -> tuple[dict[str, Any], Any]:
    """Run `run` until every module has returned; for modules in `inputs` their input is recorded instead.

    Returns the recorded values by name, in the order of computation, and the result of `run` (None if it was stopped
    early).
    """
    outputs: dict[str, Any] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            keep(name, output)

        return hook

    def note_input(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, given: keep(name, given)

    def keep(name: str, value: Any) -> None:
        outputs[name] = value
        if len(outputs) == len(modules) + len(inputs or {}):
            raise _EnoughError

    handles = [module.register_forward_pre_hook(note_input(name)) for name, module in (inputs or {}).items()]
    handles += [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        return outputs, run()
    except _EnoughError:
        return outputs, None
    finally:
        for handle in handles:
            handle.remove()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
