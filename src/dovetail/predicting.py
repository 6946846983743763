"""`predict`: what a fine-tuned run says about new photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def predict(
    *,
    run: str | Path = "",
    data: str | Path = "",
    out: str | Path = "",
    min_score: float = 0.05,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "bf16", "float32"] = "auto",
    workers: int | Literal["auto"] = "auto",
) -> Path:
    """Write a fine-tuned run's predictions for a folder of photographs.

    Segmentation writes one palette PNG for each photograph, of its size and with its name, and classes.json;
    detection writes predictions.json, boxes (and masks) in COCO's result format with the files' names;
    classification writes predictions.csv with the three best classes. Photographs that cannot be read are left out and
    named in unread.jsonl.

    Args:
        run: Folder of a fine-tuned run (its `out`).
        data: Folder of photographs (searched recursively), or a text file with one path a line.
        out: Folder for the predictions.
        min_score: Detections below this score are left out.
        accelerator: Kind of device.
        precision: Number format; "auto" takes bfloat16 autocast where the device computes it natively.
        workers: Threads that read images.

    Returns:
        The folder of the predictions.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    asked = dict(locals())
    from dovetail.transfer import predictions

    return predictions.predict(asked)
