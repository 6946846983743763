"""Names of timm models with options for the encoder and the decoder.

"NAME", "NAME+fpn", "NAME+fpn(channels=64)", or a call of timm instead of the name:
"timm.create_model('NAME', patch_size=8)+fpn(channels=64)". All values must be plain; no text is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import nn

from dovetail.errors import ModelError, unknown_name
from dovetail.networks.network import LOADS, Construction

CREATE = "timm.create_model"
# Options that composed and fine-tuned models set themselves; they do not affect the weights of the encoder's maps.
_SET_ELSEWHERE = ("num_classes", "in_chans", "img_size", "dynamic_img_size", "strict_img_size")


@dataclass(frozen=True)
class TimmName:
    """A parsed name of a timm model.

    Attributes:
        name: timm's name, which may be unknown.
        options: Options of `timm.create_model`; they override those of Dovetail.
        decoder: Name of the decoder without its options, which may be unknown.
        decoder_options: Options of the decoder.
        plus: Whether there is a decoder.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    decoder: str = ""
    decoder_options: dict[str, Any] = field(default_factory=dict)
    plus: bool = False

    @classmethod
    def parse(cls, text: str) -> TimmName:
        """Parse "NAME" or "timm.create_model('NAME', ...)", optionally with "+DECODER(...)".

        Raises:
            DovetailError: If the syntax is wrong, or the options would load weights or files.
        """
        encoder, plus, decoder = _split(text)
        name, options = _encoder(encoder)
        if not plus:
            return cls(name, options)
        return cls(name, options, *_decoder(decoder), plus=True)

    def decoder_kwargs(self, defaults: Mapping[str, int | bool]) -> dict[str, int | bool]:
        """Return `defaults` overridden by the decoder's options.

        Raises:
            ModelError: If an option is unknown or its value has another type.
        """
        for option, value in self.decoder_options.items():
            if option not in defaults:
                raise unknown_name(f"option of the decoder {self.decoder}", option, defaults, error=ModelError)
            boolean = isinstance(defaults[option], bool)
            if type(value) is not type(defaults[option]) or (not boolean and value < 1):
                wanted = "True or False" if boolean else "a positive integer"
                raise ModelError(f"{option} of the decoder {self.decoder} is {value!r}; it must be {wanted}.")
        return {**defaults, **self.decoder_options}


def is_timm_name(model: str) -> bool:
    """Whether a name refers to timm: "timm/..." or "timm.create_model(...)"."""
    return model.startswith(("timm/", "timm."))


def parse_model(model: str) -> TimmName:
    """Parse a name with "timm/" or a call; see `TimmName.parse`."""
    return TimmName.parse(model.removeprefix("timm/"))


def create_timm(name: str, options: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """Return `timm.create_model(name, ...)`.

    Args:
        name: Name of a timm model.
        options: Options of the model, with those of the user overriding Dovetail's.
        pretrained: Load timm's weights.

    Raises:
        ModelError: If timm cannot build the model.
    """
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm's models raise almost any exception for unsupported options
        call = Construction(CREATE, dict(options), (name,))
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        weights = " and whether timm's weights match them" if pretrained else ""
        raise ModelError(f"{call} cannot be built ({reason}); check its timm options{weights}.") from error
    return model


def encoder_of(call: Construction) -> tuple[str, dict[str, Any]]:
    """Return the timm name and options of the encoder in a call of timm or of a composed model."""
    name = str(call.args[0] if call.args else call.kwargs.get("name"))
    options = call.kwargs if call.path == CREATE else call.kwargs.get("encoder_options", {})
    return name, {option: value for option, value in options.items() if option not in _SET_ELSEWHERE}


def _split(text: str) -> tuple[str, str, str]:
    """Split into encoder, plus and decoder, ignoring plus signs in values of a call."""
    if not text.startswith("timm."):
        return text.partition("+")
    for place, sign in enumerate(text):
        if sign == "+" and Construction.parse(text[:place].strip()) is not None:
            return text[:place].strip(), sign, text[place + 1 :].strip()
    return text, "", ""


def _encoder(text: str) -> tuple[str, dict[str, Any]]:
    """Return timm's name and the options of a name or a call."""
    if not text.startswith("timm."):
        name, bracket, rest = text.partition("(")
        if bracket:
            raise ModelError(f"{text!r} is not a valid name; write its options as \"{CREATE}('{name}', {rest}\".")
        return text, {}
    call = Construction.parse(text)
    if call is None or call.path != CREATE or len(call.args) != 1 or not isinstance(call.args[0], str):
        raise ModelError(
            f"{text} is not a call of timm with plain values; write it as \"{CREATE}('test_vit', patch_size=8)\"."
        )
    asked = call.asked_to_load()
    if asked:
        raise ModelError(
            f"{text} would load weights or files ({asked[0]}); leave it out and choose weights with --init (`init`)."
        )
    return call.args[0], {option: value for option, value in call.kwargs.items() if option not in LOADS}


def _decoder(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of a decoder, such as "fpn-bias(channels=64)"."""
    name, bracket, rest = text.partition("(")
    if not bracket:
        return name, {}
    call = Construction.parse(f"decoder({rest}")  # names such as fpn-bias are not Python identifiers
    if call is None or call.path != "decoder" or call.args:
        raise ModelError(f'+{text} is not a decoder with plain options; write it as "+{name}(channels=64)".')
    return name, call.kwargs
