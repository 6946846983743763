"""Names of timm's models with options of their own, for the encoder and for the decoder behind the plus.

"NAME", "NAME+fpn", "NAME+fpn(channels=64)", and the same with timm's own call in place of the name:
"timm.create_model('NAME', patch_size=8)+fpn(channels=64)". All values are plain ones; no text is run.
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
# What a composed model or a fine-tuned one decides by itself; the weights behind the encoder's maps depend on none.
_SET_ELSEWHERE = ("num_classes", "in_chans", "img_size", "dynamic_img_size", "strict_img_size")


@dataclass(frozen=True)
class TimmName:
    """A timm model as it was named.

    Attributes:
        name: timm's name, which need not be known.
        options: Options for `timm.create_model`; they go over Dovetail's own.
        decoder: What stands behind the plus, without its options; it need not be known.
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
        """Return what `text` names: "NAME" or "timm.create_model('NAME', ...)", alone or with "+DECODER(...)".

        Raises:
            DovetailError: For a call that is not written so, or whose options ask for weights or files.
        """
        encoder, plus, decoder = _split(text)
        name, options = _encoder(encoder)
        if not plus:
            return cls(name, options)
        return cls(name, options, *_decoder(decoder), plus=True)

    def decoder_kwargs(self, defaults: Mapping[str, int | bool]) -> dict[str, int | bool]:
        """Return the decoder's options: `defaults`, and over them those that were given.

        Raises:
            ModelError: For an option that `defaults` do not have, or a value of another kind.
        """
        for option, value in self.decoder_options.items():
            if option not in defaults:
                raise unknown_name(f"option of the decoder {self.decoder}", option, defaults, error=ModelError)
            boolean = isinstance(defaults[option], bool)
            if type(value) is not type(defaults[option]) or (not boolean and value < 1):
                wanted = "True or False" if boolean else "a whole number from 1"
                raise ModelError(f"{option} of the decoder {self.decoder} is {value!r}; give {wanted}.")
        return {**defaults, **self.decoder_options}


def is_timm_name(model: str) -> bool:
    """Whether a model's name is meant for timm: "timm/..." or "timm.create_model(...)"."""
    return model.startswith(("timm/", "timm."))


def parse_model(model: str) -> TimmName:
    """Return what a model's name means, "timm/" before it or as a call; see `TimmName.parse`."""
    return TimmName.parse(model.removeprefix("timm/"))


def create_timm(name: str, options: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """Return `timm.create_model(name, ...)`.

    Args:
        name: A name that timm knows.
        options: Its options, those that were given over Dovetail's own.
        pretrained: Start from timm's weights.

    Raises:
        ModelError: timm cannot build it so.
    """
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm's models raise almost anything for options that they do not take
        call = Construction(CREATE, dict(options), (name,))
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        weights = " and whether timm's weights fit them" if pretrained else ""
        raise ModelError(f"{call} cannot be built ({reason}); check its options, which are timm's{weights}.") from error
    return model


def encoder_of(call: Construction) -> tuple[str, dict[str, Any]]:
    """Return the timm name of the encoder in a call of timm, or of a composed model here, and its own options."""
    name = str(call.args[0] if call.args else call.kwargs.get("name"))
    options = call.kwargs if call.path == CREATE else call.kwargs.get("encoder_options", {})
    return name, {option: value for option, value in options.items() if option not in _SET_ELSEWHERE}


def _split(text: str) -> tuple[str, str, str]:
    """Return encoder, plus and decoder; a plus in one of the call's values does not part them."""
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
            raise ModelError(f"{text!r} is no name; write it with its options as \"{CREATE}('{name}', {rest}\".")
        return text, {}
    call = Construction.parse(text)
    if call is None or call.path != CREATE or len(call.args) != 1 or not isinstance(call.args[0], str):
        raise ModelError(
            f"{text} is no call of timm with plain values; write it as \"{CREATE}('test_vit', patch_size=8)\"."
        )
    asked = call.asked_to_load()
    if asked:
        raise ModelError(
            f"{text} asks for weights or files of its own ({asked[0]}); leave it out, and start from weights with "
            "--init (`init`)."
        )
    return call.args[0], {option: value for option, value in call.kwargs.items() if option not in LOADS}


def _decoder(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of a decoder, such as "fpn-bias(channels=64)"."""
    name, bracket, rest = text.partition("(")
    if not bracket:
        return name, {}
    call = Construction.parse(f"decoder({rest}")  # names such as fpn-bias are none of Python's
    if call is None or call.path != "decoder" or call.args:
        raise ModelError(f'+{text} is no decoder with plain options; write it as "+{name}(channels=64)".')
    return name, call.kwargs
