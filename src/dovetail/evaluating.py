"""`evaluate knn` and `evaluate linear`: how good a run's frozen features are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dovetail.errors import DovetailError

if TYPE_CHECKING:
    from dovetail.transfer.results import Results


def evaluate_knn(
    *,
    run: str | Path | None = None,
    data: str | Path = "",
    out: str | Path = "",
    model: str | None = None,
    k: list[int] = [10, 20, 100, 200],  # noqa: B006 - read only
    temperature: float = 0.07,
    image_size: int | None = None,
    seed: int = 0,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "bf16", "float32"] = "auto",
    workers: int | Literal["auto"] = "auto",
    check: bool = False,
) -> Results | None:
    """Classify images by the weighted votes of their nearest neighbours among a run's frozen features.

    Args:
        run: Folder of a pre-training run.
        data: Folder with train/CLASS/ and val/CLASS/ images, as ImageNet's, or a saved Hugging Face dataset.
        out: Folder for results.json and the features; RUN/evaluate-knn unless given.
        model: Name of a model with random weights, instead of a run.
        k: Numbers of neighbours; those beyond the number of training images are left out.
        temperature: Of the votes' weights exp(similarity / temperature).
        image_size: Side of the images in pixels; the run's unless given. The shorter side is resized to 256/224 of it.
        seed: Of random weights and the interval.
        accelerator: Kind of device.
        precision: Number format; "auto" takes bfloat16 autocast where the device computes it natively.
        workers: Threads that read images.
        check: Read the whole set, list all its faults, and stop.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    asked = with_out(dict(locals()), "evaluate-knn")
    if check:
        check_images(asked["data"])
        return None
    from dovetail.transfer import probing

    results = probing.evaluate_knn(asked)
    results.write(Path(asked["out"]))
    return results


def evaluate_linear(
    *,
    run: str | Path | None = None,
    data: str | Path = "",
    out: str | Path = "",
    model: str | None = None,
    lr: list[float] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],  # noqa: B006 - read only
    epochs: int = 100,
    batch_size: int = 1024,
    weight_decay: float = 0.0,
    blocks: int = 4,
    image_size: int | None = None,
    seed: int = 0,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "bf16", "float32"] = "auto",
    workers: int | Literal["auto"] = "auto",
    check: bool = False,
) -> Results | None:
    """Train a linear classifier on a run's frozen features, computed once without augmentation.

    Args:
        run: Folder of a pre-training run.
        data: Folder with train/CLASS/ and val/CLASS/ images, as ImageNet's, or a saved Hugging Face dataset.
        out: Folder for results.json and the features; RUN/evaluate-linear unless given.
        model: Name of a model with random weights, instead of a run.
        lr: Learning rates to try; the best on a held-out tenth of the training images is taken and stated.
        epochs: Passes over the features.
        batch_size: Features in a step.
        weight_decay: Of the classifier's weights.
        blocks: Of a ViT: the last blocks whose class tokens are the features.
        image_size: Side of the images in pixels; the run's unless given. The shorter side is resized to 256/224 of it.
        seed: Of the order, the held-out tenth, random weights and the interval.
        accelerator: Kind of device.
        precision: Number format of the encoder; the classifier is trained in float32.
        workers: Threads that read images.
        check: Read the whole set, list all its faults, and stop.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    asked = with_out(dict(locals()), "evaluate-linear")
    if check:
        check_images(asked["data"])
        return None
    from dovetail.transfer import probing

    results = probing.evaluate_linear(asked)
    results.write(Path(asked["out"]))
    return results


def with_out(asked: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return options with the folder for results filled in.

    Raises:
        DovetailError: Without data, and where there is neither a folder nor a run to put one into.
    """
    if not str(asked["data"]):
        raise DovetailError("No data was named; give a labelled set with --data.")
    if not str(asked["out"]) and asked["run"] is None:
        raise DovetailError("No folder for the results was named; give one with --out.")
    run = asked["run"]
    if not str(asked["out"]) and run is not None:
        folder = Path(run)
        asked["out"] = (folder if folder.is_dir() else folder.parent) / kind
    return {name: value for name, value in asked.items() if name != "check"}


def check_images(data: str | Path) -> None:
    """Read a classification set and list its faults.

    Raises:
        DovetailError: When there is any.
    """
    from dovetail.transfer.checking import report_faults
    from dovetail.transfer.images import open_splits

    train, held_out, _ = open_splits(data)
    report_faults([("train", train), ("held-out", held_out)])
