"""`export`: a run's weights in the names of a library."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Format = Literal["model", "encoder", "decoder", "timm", "torchvision", "smp", "detectron2", "mmseg"]


def export(*, run: str | Path, to: str | Path, format: Format = "model") -> Path:
    """Write a run's weights in the names of a library.

    Args:
        run: Folder of the run, pre-trained or fine-tuned, or an exported folder.
        to: File to write: .safetensors, or .pt or .pth for `torch.load`.
        format: "model" for the whole model, names unchanged ("smp" and "torchvision" likewise, for models of these
            libraries, without a head that was not trained), "encoder" or "decoder" for one part, "timm" or
            "torchvision" for a ResNet encoder alone, "detectron2" or "mmseg" for a ResNet and its FPN or FCN decoder
            under their names.

    Returns:
        The file.

    Raises:
        DovetailError: For a run without weights, or a format that does not fit the model.
    """
    from dovetail.loading import exported
    from dovetail.weights import export_weights

    written = export_weights(exported(run), format=format, to=to)
    print(written)
    return written.path
