"""`evaluate knn` and `evaluate linear`: how good a run's frozen features are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    asked = dict(locals())
    from dovetail.transfer.checking import check_images
    from dovetail.transfer.probing import evaluate_knn as job

    return measured("evaluate-knn", asked, job, lambda: check_images(data))


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
    asked = dict(locals())
    from dovetail.transfer.checking import check_images
    from dovetail.transfer.probing import evaluate_linear as job

    return measured("evaluate-linear", asked, job, lambda: check_images(data))


def measured(
    kind: str, asked: dict[str, Any], job: Callable[[Mapping[str, Any]], Results], check: Callable[[], None]
) -> Results | None:
    """Do what every verb that measures does: look at the options, then check the data, or measure and write results.

    Args:
        kind: Of the folder for results in the run's, unless another was given.
        asked: The parameters of the verb.
        job: Measures.
        check: Reads the data and lists its faults.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: Without data, for numbers out of range, without a folder that can be written to, and as the job
            and the check do.
    """
    from dovetail.transfer.ranges import check_ranges, check_writable

    if not str(asked["data"]):
        raise DovetailError("No data was named; give a labelled set with --data.")
    check_ranges(asked)
    if asked["check"]:  # nothing is written
        check()
        return None
    run, out = asked["run"], asked["out"]
    if not str(out) and run is None:
        raise DovetailError("No folder for the results was named; give one with --out.")
    if not str(out):
        folder = Path(run)
        out = (folder if folder.is_dir() else folder.parent) / kind
    check_writable(Path(out))
    results = job({name: value for name, value in asked.items() if name != "check"} | {"out": out})
    results.write(Path(out))
    return results
