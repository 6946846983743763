"""Custom modules: taps by the dotted paths of encoder and decoder, recorded by forward hooks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dovetail.errors import DovetailError, ModelError, counted, unknown_name
from dovetail.networks.classifier import classifier_in
from dovetail.networks.nested import LAST, Shape, channel_dimension, tensors_in, with_tensors
from dovetail.networks.staged import StagedNetwork, Stages, is_map, record, stride_of
from dovetail.networks.undisturbed import undisturbed
from dovetail.recipe import Tap
from dovetail.sizes import Size, as_size, sides, size_in_words, times

log = logging.getLogger(__name__)


Paths = str | Sequence[str] | None


class OwnNetwork(StagedNetwork):
    """Any module that takes pixels [B, C, H, W]. Its parts return maps in any nesting of containers.

    Maps are [B, C, H, W] or [B, H, W, C]; their shapes for two image sizes determine the layout. If the decoder ends in
    a classifier (see `classifier_in`), the decoder's map is the input of the classifier.

    Lateral dropout changes the encoder's output, so it needs an encoder that returns several maps.

    Attributes:
        encoders: Paths of the modules that return the encoder's maps.
        decoders: Paths of the modules that return the decoder's maps.
        named: Paths of taps with custom names.
        classifier: Path of the decoder's last layer if it is a classifier, otherwise "".
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        encoder: Paths,
        decoder: Paths,
        in_channels: int,
        image_size: Size,
        taps: Mapping[str, str] | None = None,
    ) -> None:
        """Wrap `model`.

        Args:
            model: Module whose `forward` runs both parts.
            encoder: Dotted path of the encoder, such as "backbone.body"; "" if the module is the encoder. If several
                modules return its maps, a list of paths or paths separated by commas.
            decoder: Dotted path or paths of the decoder; None without a decoder.
            in_channels: Number of input channels.
            image_size: Side of the images, or (height, width), for a trial run.
            taps: Path of the module of each tap, instead of all maps of the parts. Names of encoder taps start with
                "c", names of decoder taps with "p".
        """
        self.named = dict(taps or {})
        self.passed = {"encoder": paths_in(encoder), "decoder": paths_in(decoder), "taps": self.named}
        odd = [name for name in self.named if name[:1] not in ("c", "p")]
        if odd:
            raise ModelError(f"Unknown tap {odd[0]!r}; start its name with 'c' (encoder) or 'p' (decoder).")
        of_encoder, of_decoder = ([path for name, path in self.named.items() if name[0] == sign] for sign in "cp")
        parts = paths_in(encoder) or of_encoder, paths_in(decoder) or of_decoder
        self.encoders, self.decoders = (of_encoder, of_decoder) if self.named else parts
        if not self.encoders:
            raise ModelError("The encoder is not specified; pass its path as `encoder`, or taps that start with 'c'.")
        known = dict(model.named_modules())
        for path in [*self.encoders, *self.decoders, *parts[0], *parts[1]]:
            if path not in known:
                raise unknown_name(f"part of {type(model).__name__}", path, filter(None, known), error=ModelError)
        self.classifier = ""
        root = shared_root(parts[0])
        super().__init__(
            model,
            construction=None,
            encoder_prefix=f"{root}." if root else "",
            decoder_prefixes=tuple(f"{path}." for path in parts[1]),
            in_channels=in_channels,
            image_size=image_size,
        )

    def run(
        self, pixels: Tensor, encoder: Collection[str] | None, decoder: Collection[str] | None
    ) -> tuple[Stages, Stages]:
        """Run the module until the required parts have returned; return their maps by "PATH:PLACE"."""
        deep = self.decoders if decoder is None or decoder else []
        parts = {path: self.model.get_submodule(path) for path in dict.fromkeys([*self.encoders, *deep])}
        dropout = self.rules.lateral_dropout
        if dropout is not None and dropout.p and deep and len(self.encoders) > 1:
            raise ModelError(
                "Lateral dropout needs one module that returns all encoder maps, but `encoder` has several paths; pass "
                "one module that returns them all, or set the recipe's lateral_dropout to 0."
            )
        inputs: dict[str, nn.Module] = {}
        if deep and self.classifier:
            around = max((path for path in deep if self.classifier.startswith(f"{path}.")), key=len)
            inputs[around] = self.model.get_submodule(self.classifier)
            parts.pop(around)
        kept: Stages = {}

        def hand_on(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            kept.update(self._maps(output, self.encoders[0]))
            return self._dropped(output, kept)

        handle = parts[self.encoders[0]].register_forward_hook(hand_on)
        try:
            outputs, _ = record(parts, lambda: self.model(pixels), inputs=inputs)
        finally:
            handle.remove()
        silent = [path for path in (*parts, *inputs) if path not in outputs]
        if silent:
            raise ModelError(f"The part {silent[0]!r} does not run in the model's forward; choose one that does.")
        for path in self.encoders[1:]:
            kept.update(self._maps(outputs[path], path))
        return kept, {key: value for path in deep for key, value in self._maps(outputs[path], path).items()}

    def paths(self) -> dict[str, Any]:
        """Return the paths of encoder, decoder and taps as they were passed."""
        return {name: value for name, value in self.passed.items() if value}

    def _discover(self) -> None:
        """Determine the layout of maps, the taps, and the parameters of the decoder."""
        self.channels_last: frozenset[str] = frozenset()
        self.classifier = self._classifier()
        shapes = self._shapes(self.image_size)
        height, width = sides(self.image_size)
        larger = as_size((height + 64, width + 64))
        others = next(filter(None, map(self._shapes, (larger, times(self.image_size, 2)))), {})
        found = {key: channel_dimension(shape, others.get(key)) for key, shape in shapes.items()}
        unclear = [(key, shapes[key], others.get(key)) for key, dimension in found.items() if dimension is None]
        if unclear:
            raise ModelError(_unclear(*unclear[0], image_size=self.image_size))
        self.channels_last = frozenset(key for key, dimension in found.items() if dimension == LAST)
        super()._discover()
        if self.named:
            self._name_taps()
        both = {part: [name for name, tap in self.taps.items() if tap.part == part] for part in ("encoder", "decoder")}
        if both["encoder"] and both["decoder"]:
            of_encoder, of_decoder = self.reached(both["encoder"]), self.reached(both["decoder"])
            self.between = tuple(
                name
                for name, value in self.model.named_parameters()
                if id(value) in of_decoder - of_encoder and not name.startswith(self.decoder_prefixes)
            )

    def _name_taps(self) -> None:
        """Use the custom names of taps instead of those by stride."""
        shapes = self._shapes(self.image_size)
        found = {name: [key for key in shapes if key.startswith(f"{path}:")] for name, path in self.named.items()}
        several = next((name for name, keys in found.items() if len(keys) != 1), None)
        if several is not None:
            raise ModelError(
                f"The tap {several!r} is {self.named[several]!r}, which returns {counted(len(found[several]), 'map')}; "
                "choose a module that returns one."
            )
        self.stages = {name: keys[0] for name, keys in found.items()}
        self.taps = {}
        for name, key in self.stages.items():
            part: Literal["encoder", "decoder"] = "encoder" if name[0] == "c" else "decoder"
            self.taps[name] = Tap(shapes[key][1], stride_of(shapes[key][3], sides(self.image_size)[1]), "map", part)

    def _shapes(self, size: Size) -> dict[str, Shape]:
        """Return the shapes of all maps for an image of this size; none if it is not supported."""
        try:
            with undisturbed(self.model), torch.no_grad():
                self.model.eval()
                answers = self.run(self._black(size), None, None)
        except DovetailError:
            raise
        except Exception:  # a module may raise any exception for unsupported images; the base class reports it
            return {}
        return {key: tuple(value.shape) for maps in answers for key, value in maps.items()}

    def _black(self, size: Size) -> Tensor:
        return next(self.model.parameters()).new_zeros(1, self.in_channels, *sides(size))

    def _classifier(self) -> str:
        """Return the path of the decoder's classifier, or "" without one or with custom taps."""
        found = "" if self.named else classifier_in(self.model, self.decoders, self._black(self.image_size))
        if found:
            log.info(
                "The decoder's last layer, %s, is treated as a classifier, and its input as the decoder's map.", found
            )
        return found

    def _maps(self, output: Any, path: str) -> Stages:
        """Return the maps [B, C, H, W] in a module's output by the module's path and their position."""
        found = {f"{path}:{place}": value for place, value in enumerate(tensors_in(output)) if is_map(value)}
        return {key: value.permute(0, 3, 1, 2) if key in self.channels_last else value for key, value in found.items()}

    def _dropped(self, output: Any, maps: Stages) -> Any:
        """Return the encoder's output with lateral dropout on all maps except the deepest."""
        if self.rules.lateral_dropout is None or len(maps) < 2:
            return output
        finest_first = sorted(maps, key=lambda key: -maps[key].shape[-1])
        dropped = dict(zip(finest_first, self.drop_laterals([maps[key] for key in finest_first]), strict=True))
        places = itertools.count()

        def change(value: Tensor) -> Tensor:
            key = f"{self.encoders[0]}:{next(places)}"
            if key not in dropped:
                return value
            changed: Tensor = dropped[key]
            return changed.permute(0, 2, 3, 1) if key in self.channels_last else changed

        return with_tensors(output, change)


def paths_in(given: Paths) -> list[str]:
    """Return the paths of a part from a string (separated by commas) or a sequence; [] for none."""
    if given is None:
        return []
    return [path.strip() for path in given.split(",")] if isinstance(given, str) else list(given)


def shared_root(paths: Sequence[str]) -> str:
    """Return the longest common dotted prefix of all paths; a single path is its own prefix."""
    columns = zip(*(path.split(".") for path in paths), strict=False)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return ".".join(column[0] for column in same)


def _unclear(key: str, shape: Shape, other: Shape | None, *, image_size: Size) -> str:
    """Return the error message for a map with an ambiguous layout."""
    path = key.rpartition(":")[0]
    also = f", and {list(other)} for larger ones" if other is not None else ""
    return (
        f"The part {path or 'itself'!r} returns a tensor of shape {list(shape)} for images of "
        f"{size_in_words(image_size)} px{also}, which is not clearly [B, C, H, W] or [B, H, W, C]; choose a part that "
        "returns maps of one of these shapes, or another image size."
    )
