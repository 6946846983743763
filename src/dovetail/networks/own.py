"""The user's own module: taps by the dotted paths of its encoder and decoder, recorded by forward hooks."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from dovetail.errors import DovetailError, ModelError, unknown_name
from dovetail.networks.nested import LAST, Shape, channel_dimension, tensors_in, with_tensors
from dovetail.networks.staged import StagedNetwork, Stages, is_map, record
from dovetail.networks.undisturbed import undisturbed


class OwnNetwork(StagedNetwork):
    """Any module that takes pixels [B, C, H, W]. Its parts answer with maps in any nesting of containers.

    Maps are [B, C, H, W] or [B, H, W, C]; which it is, is read off their shapes for images of two sizes.

    Lateral dropout changes what the encoder hands on, so it needs an encoder that answers with several maps.
    """

    def __init__(
        self, model: nn.Module, *, encoder: str, decoder: str | None, in_channels: int, image_size: int
    ) -> None:
        """Wrap `model`.

        Args:
            model: The module, whose `forward` runs both parts.
            encoder: Dotted path of the encoder, such as "backbone.body"; "" when the module is its own encoder.
            decoder: Dotted path of the decoder; None for an encoder alone.
            in_channels: Channels of the pixels.
            image_size: Side of the pixels that the module is probed with.
        """
        self.paths = [path for path in (encoder, decoder) if path is not None]
        for path in self.paths:
            if path not in dict(model.named_modules()):
                raise unknown_name(
                    f"part of {type(model).__name__}",
                    path,
                    [n for n, _ in model.named_modules() if n],
                    error=ModelError,
                )
        super().__init__(
            model,
            construction=None,
            encoder_prefix=f"{encoder}." if encoder else "",
            decoder_prefixes=(f"{decoder}.",) if decoder else (),
            in_channels=in_channels,
            image_size=image_size,
        )

    def run(
        self, pixels: Tensor, encoder: Collection[str] | None, decoder: Collection[str] | None
    ) -> tuple[Stages, Stages]:
        """Run the module until the parts needed have answered; return their maps as "0", "1", … in their own order."""
        paths = self.paths if decoder is None or decoder else self.paths[:1]
        parts = {path: self.model.get_submodule(path) for path in paths}
        kept: list[Stages] = []

        def hand_on(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            kept.append(self._maps(output, paths[0]))
            return self._dropped(output, kept[0])

        handle = parts[paths[0]].register_forward_hook(hand_on)
        try:
            outputs, _ = record(parts, lambda: self.model(pixels))
        finally:
            handle.remove()
        silent = [path for path in paths if path not in outputs]
        if silent:
            raise ModelError(f"The part {silent[0]!r} does not run in the model's forward; name one that does.")
        return kept[0], self._maps(outputs[paths[1]], paths[1]) if len(paths) > 1 else {}

    def _discover(self) -> None:
        """Find out where the maps have their channels, what the taps are, and which parameters are the decoder's."""
        self.channels_last: frozenset[tuple[str, str]] = frozenset()
        shapes = self._shapes(self.image_size)
        others = next(filter(None, map(self._shapes, (self.image_size + 64, 2 * self.image_size))), {})
        found = {key: channel_dimension(shape, others.get(key)) for key, shape in shapes.items()}
        unclear = [(*key, shapes[key], others.get(key)) for key, dimension in found.items() if dimension is None]
        if unclear:
            raise ModelError(_unclear(*unclear[0], image_size=self.image_size))
        self.channels_last = frozenset(key for key, dimension in found.items() if dimension == LAST)
        super()._discover()
        both = {part: [name for name, tap in self.taps.items() if tap.part == part] for part in ("encoder", "decoder")}
        if both["encoder"] and both["decoder"]:
            of_encoder, of_decoder = self.reached(both["encoder"]), self.reached(both["decoder"])
            self.between = tuple(
                name
                for name, value in self.model.named_parameters()
                if id(value) in of_decoder - of_encoder and not name.startswith(self.decoder_prefixes)
            )

    def _shapes(self, side: int) -> dict[tuple[str, str], Shape]:
        """Return the shapes of all maps for an image of `side` x `side` pixels; none for one that does not fit."""
        pixels = next(self.model.parameters()).new_zeros(1, self.in_channels, side, side)
        try:
            with undisturbed(self.model), torch.no_grad():
                self.model.eval()
                answers = self.run(pixels, None, None)
        except DovetailError:
            raise
        except Exception:  # whatever a module raises for pixels that it does not take; the base class tells of it
            return {}
        return {
            (path, place): tuple(value.shape)
            for path, maps in zip(self.paths, answers, strict=False)
            for place, value in maps.items()
        }

    def _maps(self, output: Any, path: str) -> Stages:
        """Return the maps [B, C, H, W] in a part's answer, by their place in it."""
        return {
            str(place): value.permute(0, 3, 1, 2) if (path, str(place)) in self.channels_last else value
            for place, value in enumerate(tensors_in(output))
            if is_map(value)
        }

    def _dropped(self, output: Any, maps: Stages) -> Any:
        """Return the encoder's output with lateral dropout on all its maps but the deepest."""
        if self.rules.lateral_dropout is None or len(maps) < 2:
            return output
        finest_first = sorted(maps, key=lambda key: -maps[key].shape[-1])
        dropped = dict(zip(finest_first, self.drop_laterals([maps[key] for key in finest_first]), strict=True))
        places = itertools.count()

        def change(value: Tensor) -> Tensor:
            place = str(next(places))
            if place not in dropped:
                return value
            last = (self.paths[0], place) in self.channels_last
            changed: Tensor = dropped[place]
            return changed.permute(0, 2, 3, 1) if last else changed

        return with_tensors(output, change)


def _unclear(path: str, place: str, shape: Shape, other: Shape | None, *, image_size: int) -> str:
    """Return the sentence for a map of whose dimensions it is not known which has the channels."""
    also = f", and {list(other)} for larger ones" if other is not None else ""
    return (
        f"The part {path or 'itself'!r} answers with a tensor of shape {list(shape)} for images of {image_size} "
        f"px{also}, which is not clearly [B, C, H, W] or [B, H, W, C]; name a part that answers with maps of one of "
        "these shapes, or choose another image size."
    )
