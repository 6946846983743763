"""The user's own module: taps by the dotted paths of its encoder and decoder, recorded by forward hooks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dovetail.errors import DovetailError, unknown_name
from dovetail.networks.staged import StagedNetwork, Stages, is_map, record


class OwnNetwork(StagedNetwork):
    """Any module that takes pixels [B, C, H, W]. Its parts answer with one map, or a sequence or dictionary of maps.

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
                raise unknown_name(f"part of {type(model).__name__}", path, [n for n, _ in model.named_modules() if n])
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
            kept.append(_maps(output))
            return self._dropped(output)

        handle = parts[paths[0]].register_forward_hook(hand_on)
        try:
            outputs, _ = record(parts, lambda: self.model(pixels))
        finally:
            handle.remove()
        silent = [path for path in paths if path not in outputs]
        if silent:
            raise DovetailError(f"The part {silent[0]!r} does not run in the model's forward; name one that does.")
        return kept[0], _maps(outputs[paths[1]]) if len(paths) > 1 else {}

    def _dropped(self, output: Any) -> Any:
        """Return the encoder's output with lateral dropout on all its maps but the deepest."""
        maps = _maps(output)
        if self.lateral_dropout is None or len(maps) < 2:
            return output
        finest_first = sorted(maps, key=lambda key: -maps[key].shape[-1])
        dropped = dict(zip(finest_first, self.drop_laterals([maps[key] for key in finest_first]), strict=True))
        if isinstance(output, Mapping):
            return {name: dropped.get(str(index), value) for index, (name, value) in enumerate(output.items())}
        return [dropped.get(str(index), value) for index, value in enumerate(output)]


def _maps(output: Any) -> Stages:
    """Return the maps in a module's answer, by their place in it."""
    if isinstance(output, Tensor):
        values: Sequence[Any] = [output]
    elif isinstance(output, Mapping):
        values = list(output.values())
    elif isinstance(output, (list, tuple)):
        values = output
    else:
        values = []
    return {str(index): value for index, value in enumerate(values) if is_map(value)}
