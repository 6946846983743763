"""DeCon's decoders: the feature pyramid with bias and with BatchNorm, and the FCN decoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from dovetail.networks.decoders import FCNDecoder, fpn_forward
from tests.golden.vectors import Comparison, Golden, gradients, load


def check(golden: Golden) -> Iterator[Comparison]:
    """Compare outputs and all gradients of both pyramids and of every FCN case."""
    for case in ("bias", "bn"):
        yield from check_pyramid(golden, case)
    for case in sorted({name.split(".")[0] for name in golden.tensors if name.startswith("fcn_dilation")}):
        yield from check_fcn(golden, case)


def check_pyramid(golden: Golden, case: str) -> Iterator[Comparison]:
    """Compare every level and every gradient of one pyramid."""
    inputs = {name: value.clone().requires_grad_() for name, value in sorted(golden.under("input").items())}
    finest = int(next(iter(inputs))[1:])
    fpn = FeaturePyramidNetwork(
        golden.config["C"], golden.config["out"], norm_layer=nn.BatchNorm2d if case == "bn" else None
    )
    stored = {name: value for name, value in golden.under(case).items() if name.startswith(("lateral.", "output."))}
    load(fpn, {module_name(name, finest): value for name, value in stored.items()})
    outputs = fpn_forward(fpn, list(inputs.values()), levels=range(len(inputs)), drop=lambda laterals: laterals)
    named = {f"p{level + finest}": value for level, value in sorted(outputs.items())}
    torch.stack([(value * golden[f"cotangent.{name}"]).sum() for name, value in named.items()]).sum().backward()
    expected = golden.under(f"{case}.expected")
    for name, value in named.items():
        yield Comparison(f"{case} {name}", value, expected.pop(name))
    for name, value in inputs.items():
        yield Comparison(f"{case} grad input {name}", grad_of(value), expected.pop(f"grad.input.{name}"))
    weights = {module_name(name.removeprefix("grad."), finest): value for name, value in expected.items()}
    assert weights.keys() <= dict(fpn.named_parameters()).keys()
    yield from gradients(fpn, case, weights)


def check_fcn(golden: Golden, case: str) -> Iterator[Comparison]:
    """Compare the output and every gradient of one FCN decoder."""
    stored = golden.under(case)
    features = stored.pop("input").clone().requires_grad_()
    dilation = int(case.removeprefix("fcn_dilation"))
    decoder = FCNDecoder(features.shape[1], golden.config["out"], dilation=dilation)
    cotangent, expected = stored.pop("cotangent"), golden.under(f"{case}.expected")
    load(decoder, {f"convs.{name}": value for name, value in stored.items() if not name.startswith("expected.")})
    output = decoder(features)
    (output * cotangent).sum().backward()
    yield Comparison(f"{case} output", output, expected.pop("output"))
    yield Comparison(f"{case} grad input", grad_of(features), expected.pop("grad.input"))
    weights = {f"convs.{name.removeprefix('grad.')}": value for name, value in expected.items()}
    assert weights.keys() <= dict(decoder.named_parameters()).keys()
    yield from gradients(decoder, case, weights)


def module_name(name: str, finest: int) -> str:
    """Return torchvision's name of `lateral.p3.conv.weight` in a pyramid that begins with level `finest`."""
    kind, level, layer, tensor = name.split(".")
    blocks = "inner_blocks" if kind == "lateral" else "layer_blocks"
    return f"{blocks}.{int(level[1:]) - finest}.{'1' if layer == 'bn' else '0'}.{tensor}"


def grad_of(value: Tensor) -> Tensor:
    """Return the gradient of a leaf."""
    assert value.grad is not None
    return value.grad
