"""Exports models that run without Dovetail: ONNX, torch.export, and folders in the layout of the Hugging Face hub.

Shapes: B images, C channels, H x W pixels. The input of a graph is the model's input: normalised pixels [B, C, H, W].
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from segmentation_models_pytorch.base import SegmentationModel
from timm.layers.conv2d_same import Conv2dSame
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from dovetail.errors import OptionsError
from dovetail.files.writing import aside, writing
from dovetail.networks.decoders import intermediates, pyramid_stages
from dovetail.sizes import Size, sides, times
from dovetail.weights.formats import Written

GraphFormat = Literal["onnx", "torch-export", "hugging-face"]
GRAPHS: tuple[GraphFormat, ...] = ("onnx", "torch-export", "hugging-face")
ENDINGS: Mapping[str, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
OPSET = 18
LEAST_SIDE_PX = 256
STRIDE_PX = 32  # of the deepest feature map
CLOSE = 1e-3  # relative to the largest value: float32 operations in another order


class EncoderMaps(nn.Module):
    """The encoder alone: maps pixels [B, C, H, W] to its feature maps, finest first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder = timm_encoder(model) or smp_encoder(model)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of strides 4 to 32 of a timm encoder, or all feature maps of an smp encoder."""
        if hasattr(self.encoder, "forward_intermediates"):
            return tuple(intermediates(self.encoder, pixels, [place for place, _ in pyramid_stages(self.encoder)]))
        return tuple(self.encoder(pixels)[1:])


class ConstantlyPadded(nn.Conv2d):
    """TensorFlow's "same" padding for maps whose sides are multiples of the stride, where it is constant.

    timm computes it from the size of each map. With dynamic sides, torch.export then handles expressions that grow from
    layer to layer, and takes more than ten minutes for an EfficientNet.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the convolved map [B, C, H / stride, W / stride]."""
        for side, stride in zip(pixels.shape[2:], self.stride, strict=True):
            torch._check(side % stride == 0)  # exported programs refuse other sizes
        sides = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        across, down = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in reversed([*sides]))
        padded = F.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def constantly_padded(module: nn.Module) -> nn.Module:
    """Return a copy of a module with `ConstantlyPadded` convolutions, or the module itself if it needs none."""
    if not any(isinstance(one, Conv2dSame) for one in module.modules()):
        return module
    module = copy.deepcopy(module)
    for one in module.modules():
        if isinstance(one, Conv2dSame):
            one.__class__ = ConstantlyPadded  # type: ignore[assignment]  # has the same attributes
    return module


def timm_encoder(model: nn.Module) -> nn.Module | None:
    """Return the timm model that a module is, or has as its encoder. None if there is none."""
    inner = dict(model.named_children()).get("encoder", model)
    return inner if type(inner).__module__.startswith("timm.") else None


def smp_encoder(model: nn.Module) -> nn.Module:
    """Return the encoder of a segmentation_models_pytorch model. Raise `OptionsError` for other models."""
    if not isinstance(model, SegmentationModel):
        raise OptionsError(f"The encoder of {type(model).__name__} cannot run on its own; export the whole model.")
    encoder: nn.Module = model.get_submodule("encoder")
    return encoder


def export_graph(
    model: nn.Module,
    *,
    format: GraphFormat,
    to: str | Path,
    part: Literal["all", "encoder"] = "all",
    channels: int = 3,
    image_size: Size = 224,
    dynamic: bool = True,
) -> Written:
    """Export a model so that it runs without Dovetail.

    Args:
        model: Model with its weights.
        format: One of "onnx" (opset 18; its output is compared with PyTorch's first), "torch-export" (for
            `torch.export.load`), or "hugging-face" (a folder with config.json and model.safetensors of a timm encoder,
            for `timm.create_model("local-dir:FOLDER")` and for transformers' timm wrapper).
        to: Output file, .onnx or .pt2; a folder for "hugging-face".
        part: The whole model, or only its encoder, which returns its feature maps.
        channels: Number of input channels.
        image_size: Side of the input image, or (height, width), in pixels. With `dynamic`, other sizes work, too.
        dynamic: Whether height and width are dynamic. The batch size always is. Models with TensorFlow's "same"
            padding (timm's `tf_` models) then need multiples of 32.

    Raises:
        OptionsError: The format does not support the model, or a package is missing.
    """
    path = Path(to)
    if format == "hugging-face":
        return _hugging_face(model, path)
    if path.suffix != ENDINGS[format]:
        raise OptionsError(f"--to {path} has an unsupported suffix; expected {ENDINGS[format]} for {format}.")
    plain = (EncoderMaps(model) if part == "encoder" else model).eval()
    module = constantly_padded(plain) if dynamic else plain
    stepped = module is not plain
    height, width = _sides_of_example(image_size, stepped=stepped) if dynamic else sides(image_size)
    pixels = torch.rand(2, channels, height, width)
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic else {0: Dim.DYNAMIC}
    write = _onnx if format == "onnx" else _torch_export
    with writing(path, option="to"), aside(path) as fresh:
        said = write(module, pixels, free, fresh)
    what = f"{'the encoder' if part == 'encoder' else 'the whole model'} for pixels [B, {channels}, "
    what += f"{'H, W' if dynamic else f'{height}, {width}'}]"
    what += f" (H and W multiples of {STRIDE_PX})" if stepped else ""
    return Written(path, len(module.state_dict()), f"{what}{said}")


def _sides_of_example(image_size: Size, *, stepped: bool) -> tuple[int, int]:
    """Return height and width of the image that a graph is recorded with, in pixels."""
    # torch.export would treat a side as fixed if the deepest feature map had a single cell.
    height, width = sides(times(image_size, -(-LEAST_SIDE_PX // min(sides(image_size)))))
    step = STRIDE_PX if stepped else 1
    return -(-height // step) * step, -(-width // step) * step


def _torch_export(module: nn.Module, pixels: Tensor, sides: dict[int, Any], path: Path) -> str:
    """Write a program of `torch.export`, and return a note for the summary."""
    with torch.no_grad():
        program = _built(lambda: torch.export.export(module, (pixels,), dynamic_shapes=(sides,)), module)
    with path.open("wb") as file:
        torch.export.save(program, file)
    return ""


def _onnx(module: nn.Module, pixels: Tensor, sides: dict[int, Any], path: Path) -> str:
    """Write an ONNX model whose output agrees with PyTorch's, and return a note on the difference."""
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if absent:
        raise OptionsError(
            f"ONNX export needs the package {absent[0]}, which is not installed; install it with "
            '`pip install "dovetail-ssl[onnx]"`.'
        )
    import onnxruntime

    with torch.no_grad():
        program = _built(
            lambda: torch.onnx.export(
                module, (pixels,), dynamo=True, dynamic_shapes=(sides,), opset_version=OPSET, input_names=["pixels"],
                verbose=False,
            ),
            module,
        )  # fmt: skip
        program.save(str(path), external_data=False)
        expected = _flat(module(pixels))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    pairs = zip(found, expected, strict=True)
    apart = max(float(np.abs(ours - theirs.numpy()).max() / max(theirs.abs().max(), 1e-6)) for ours, theirs in pairs)
    if apart > CLOSE:
        raise OptionsError(
            f"The output of the ONNX model differs from PyTorch's by {apart:.1g} (relative to the largest value); use "
            "the format 'torch-export'."
        )
    return f", opset {OPSET}, within {apart:.1g} of PyTorch's output"


def _built(make: Callable[[], Any], module: nn.Module) -> Any:
    """Return `make()`. Raise `OptionsError` if PyTorch cannot export the module as a graph."""
    try:
        return make()
    except Exception as error:  # the exporter raises almost anything for code that it does not support
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise OptionsError(
            f"PyTorch cannot export {type(module).__name__} as a graph ({reason}); fix the size of the images with "
            "--dynamic false, or export only the encoder with --part encoder."
        ) from error


def _flat(answer: Any) -> list[Tensor]:
    """Return the tensors in a module's output, in order."""
    if isinstance(answer, Tensor):
        return [answer]
    values = answer.values() if isinstance(answer, Mapping) else answer
    return [tensor for value in values for tensor in _flat(value)]


def _hugging_face(model: nn.Module, folder: Path) -> Written:
    """Write a timm encoder in timm's layout for the Hugging Face hub."""
    encoder = timm_encoder(model)
    if encoder is None:
        raise OptionsError(
            f"The encoder of {type(model).__name__} is not a timm model; load the run into a transformers model with "
            "dovetail.load_into, and save that model with save_pretrained."
        )
    with writing(folder / "model.safetensors", option="to"):
        save_for_hf(encoder, str(folder), safe_serialization=True)
    return Written(folder, len(encoder.state_dict()), "the encoder in timm's layout for the Hugging Face hub")
