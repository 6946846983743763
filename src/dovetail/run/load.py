"""`load` and `load_into` for every folder with weights: of pre-training, and of fine-tuning."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dovetail.options import MOST_SIDE_PX, Range
from dovetail.weights import exported as weights
from dovetail.weights import matching
from dovetail.weights.exported import Exported, MatchReport, SelectedPart


def load(source: str | Path, *, image_size: int | None = None) -> nn.Module:
    """Build a run's model and load its weights strictly.

    Args:
        source: Folder of a pre-training run, its exported folder, or the folder of a fine-tuned run. The model of the
            last has its classes, and says in `class_names` and `normalisation` how it is used.
        image_size: Side in pixels of the images that the model is for. A ViT's positions are resampled to the grid of
            that size, and the match report that says so is printed. Default: the size of the run's views. Models
            without positions take images of any size anyway.

    Raises:
        DovetailError: For a bare file, a module of the user's own (use `load_into`), or a size the model cannot have.
    """
    from dovetail.downstream.rebuilt import finished_folder, load_finished

    if image_size is not None:
        Range(8, most=MOST_SIDE_PX).check("image_size", image_size)
    folder = finished_folder(source)
    if folder is None:
        return weights.load(source, image_size=image_size)
    return load_finished(folder, image_size=image_size)


def load_into(
    model: nn.Module,
    source: str | Path,
    *,
    part: SelectedPart = "all",
    prefix: str | None = None,
    strict: bool = True,
) -> MatchReport:
    """Load weights into `model` in place and report what fitted.

    Names are matched within the encoder and within the decoder, so the target may be of another library than the
    source, as long as the parts are of one architecture; `docs/load.md` lists the libraries. Task heads are left as
    they are, but for those of a fine-tuned run that fit. Positions of a ViT are resampled to the model's grid, and the
    first convolution is made for the model's channels. The report says so.

    Args:
        model: The module to fine-tune.
        source: Folder of a run, pre-trained or fine-tuned, exported folder, or file of weights, of another program too:
            .safetensors, .pth, .pt, .ckpt, .bin or .pth.tar.
        part: Load everything, or only one part. A decoder that the file does not have is left as it is.
        prefix: Of the part's names in the model, the encoder's for "all", such as "model.backbone."; found by itself
            unless given.
        strict: Raise when anything is missing, unexpected or of another shape, before the model is touched.

    Raises:
        WeightsError: As `strict` says, and always when nothing fits.
    """
    return matching.load_into(model, exported(source), part=part, prefix=prefix, strict=strict)


def exported(source: str | Path) -> Exported:
    """Return the weights of a run, pre-trained or fine-tuned; see `dovetail.weights.exported.read_exported`."""
    from dovetail.downstream.rebuilt import exported_of, finished_folder

    folder = finished_folder(source)
    return weights.read_exported(source) if folder is None else exported_of(folder)
