"""`load` and `load_into` for pre-training runs and fine-tuned runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from torch import nn

from dovetail.errors import ModelError, OptionsError, unknown_name
from dovetail.networks.modules import copied, module_of
from dovetail.options import MOST_SIDE_PX, Range
from dovetail.sizes import Size, as_size, sides
from dovetail.weights import exported as weights
from dovetail.weights import matching
from dovetail.weights.exported import Exported, MatchReport, SelectedPart


def load(source: str | Path, *, image_size: Size | str | None = None, model: Any = None) -> nn.Module:
    """Build the model of a run and load its weights strictly.

    Args:
        source: Folder of a pre-training run, its exported folder, or the folder of a fine-tuned run. The model of a
            fine-tuned run has its classes, and the attributes `class_names` and `normalisation`.
        image_size: Image size of the model in pixels: the side of a square, (height, width), or "64x128". The position
            embeddings of a ViT are resampled to this size, and the match report is printed. Default: the size of the
            run's views. Models without position embeddings support any size.
        model: For a run of your own module: the module, or "package.module:Class". The weights are loaded into a copy.
            Parameters that pre-training did not train keep the values of this module.

    Returns:
        The model with its weights.

    Raises:
        DovetailError: The source is a bare weight file, the model is a custom module and `model` is missing, or it does
            not support the image size.
    """
    from dovetail.downstream.rebuilt import finished_folder, load_finished

    if image_size is not None:
        image_size = as_size(image_size)
        for side in sides(image_size):
            Range(8, most=MOST_SIDE_PX).check("image_size", side)
    folder, own = finished_folder(source), module_of(model)
    if folder is not None:
        return load_finished(folder, image_size=image_size, model=own)
    if own is None:
        return weights.load(source, image_size=image_size)
    if image_size is not None:
        raise OptionsError("image_size does not apply to your own module; pass a module for this size instead.")
    loaded = copied(own)
    matching.load_into(loaded, weights.read_exported(source))
    return loaded


def load_into(
    model: nn.Module,
    source: str | Path,
    *,
    part: SelectedPart = "all",
    prefix: str | None = None,
    strict: bool = True,
) -> MatchReport:
    """Load weights into `model` in place and report which tensors were loaded.

    Names are matched within the encoder and within the decoder. So the model may come from another library than the
    file, as long as the parts have the same architecture; `docs/load.md` lists the libraries. Task heads keep their
    weights, except for heads of a fine-tuned run that fit. The position embeddings of a ViT are resampled to the
    model's grid, and the first convolution is adapted to the model's number of input channels. The report lists these.

    Args:
        model: Module to load the weights into.
        source: Folder of a pre-training or fine-tuned run, exported folder, or weight file, also of another program:
            .safetensors, .pth, .pt, .ckpt, .bin or .pth.tar.
        part: Load everything, or only one part. A decoder that the file lacks keeps its weights.
        prefix: Prefix of the part's names in the model (of the encoder for "all"), such as "model.backbone.". By
            default, it is found automatically.
        strict: Raise an error if a tensor is missing, unexpected or has another shape. The model is not changed then.

    Returns:
        Report of the tensors that were loaded and those that were not.

    Raises:
        WeightsError: No tensor fits, or `strict` is set and some tensors do not fit.
        ModelError: The model is not a module.
        OptionsError: The part is unknown, or it was not found in the model.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"load_into expects a torch.nn.Module as model, got {type(model).__name__}; build the model first, or use "
            "load, which builds it."
        )
    if part not in (parts := get_args(SelectedPart)):
        raise unknown_name("part", str(part), parts)
    return matching.load_into(model, exported(source), part=part, prefix=prefix, strict=strict)


def exported(source: str | Path) -> Exported:
    """Return the weights of a pre-training or fine-tuned run (see `dovetail.weights.exported.read_exported`)."""
    from dovetail.downstream.rebuilt import exported_of, finished_folder

    folder = finished_folder(source)
    return weights.read_exported(source) if folder is None else exported_of(folder)
