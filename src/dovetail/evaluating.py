"""`evaluate knn`, `evaluate linear` and `evaluate dense`: how good a run's frozen features are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dovetail.errors import DovetailError
from dovetail.locking import in_use

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
    value_range: list[float] = [],  # noqa: B006 - read only
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
        value_range: Black and white of images with more than 8 bits a channel; the run's unless given.
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
    value_range: list[float] = [],  # noqa: B006 - read only
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
        value_range: Black and white of images with more than 8 bits a channel; the run's unless given.
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


def evaluate_dense(
    *,
    run: str | Path | None = None,
    data: str | Path = "",
    out: str | Path = "",
    model: str | None = None,
    init: str | None = None,
    at: list[str] = ["auto"],  # noqa: B006 - read only
    protocols: list[str] = ["auto"],  # noqa: B006 - read only
    labels: list[float] = [1.0],  # noqa: B006 - read only
    seeds: int = 1,
    image_size: int | None = None,
    classes: int | None = None,
    ignore_index: int = 255,
    lr: list[float] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0],  # noqa: B006 - read only
    weight_decay: list[float] = [0.0001, 0.01],  # noqa: B006 - read only
    steps: int = 400,
    k: int = 30,
    temperature: float = 0.02,
    memory: int = 20_000,
    clusters: list[int] = [0, 500],  # noqa: B006 - read only
    radius: int = 12,
    seed: int = 0,
    value_range: list[float] = [],  # noqa: B006 - read only
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "bf16", "float32"] = "auto",
    workers: int | Literal["auto"] = "auto",
    check: bool = False,
) -> Results | None:
    """Measure frozen maps of the encoder and the decoder on labelled pixels, without fine-tuning.

    Args:
        run: Folder of a pre-training run.
        data: A labelled set for segmentation, as of `finetune segment`; or folders of frames, as DAVIS has them.
        out: Folder for results.json; RUN/evaluate-dense unless given.
        model: Name of a model, instead of a run.
        init: Weights of that model: a .safetensors file, a run's folder, or "imagenet" for the library's encoder, with
            a decoder drawn from the seed; unless given, all weights are drawn from it.
        at: Maps to measure: encoder (its deepest), decoder (its finest), a name such as c4 or p2, or several side by
            side, such as c4+c5; "auto" is the encoder, and the decoder where there is one.
        protocols: Ways to measure: linear (a linear classifier of cells), retrieval (labels of the nearest labelled
            cells), clusters (k-means, matched to classes), propagation (labels carried from frame to frame); "auto"
            is the last on folders of frames, the others on images.
        labels: Training images with labels: up to 1 a share of them, above 1 their number; nested, class-balanced.
        seeds: Times to repeat, with other labelled images and starting centres.
        image_size: Side in pixels that whole images are resized to; the run's unless given.
        classes: Number of classes, for images beside masks; counted in the masks unless given.
        ignore_index: Label of pixels that do not count, for images beside masks and for frames; -1 for none.
        lr: Of linear: learning rates to try; the best on a held-out tenth of the labelled images is taken.
        weight_decay: Of linear: weight decays to try with each rate.
        steps: Of linear: optimiser steps.
        k: Of retrieval: nearest cells.
        temperature: Of retrieval: of the softmax over their similarities.
        memory: Of retrieval: labelled cells in the memory bank at most.
        clusters: Of clusters: their numbers; 0 is the number of classes.
        radius: Of propagation: cells to each side that labels are taken from.
        seed: The first seed; of random weights and the interval, too.
        value_range: Black and white of images with more than 8 bits a channel; the run's unless given.
        accelerator: Kind of device.
        precision: Number format of the network; all else is computed in float32.
        workers: Threads that read images.
        check: Read the whole set, list all its faults, and stop.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    from dovetail.transfer.dense.checking import check_dense
    from dovetail.transfer.dense.job import DenseRequest, measure_dense
    from dovetail.transfer.dense.options import DenseOptions
    from dovetail.transfer.dense.propagation import PropagationOptions

    request = DenseRequest(
        run=run,
        model=model,
        init=init,
        data=data,
        at=tuple(at),
        protocols=tuple(protocols),
        classes=classes,
        ignore_index=ignore_index,
        image_size=image_size,
        accelerator=accelerator,
        precision=precision,
        workers=workers,
        options=DenseOptions(
            labels=tuple(labels),
            seeds=seeds,
            seed=seed,
            lr=tuple(lr),
            weight_decay=tuple(weight_decay),
            steps=steps,
            memory=memory,
            k=k,
            temperature=temperature,
            clusters=tuple(clusters),
        ),
        propagation=PropagationOptions(radius=radius),
    )
    asked = {**request.as_dict(), "out": out, "check": check, "value_range": value_range}
    return measured(
        "evaluate-dense",
        asked,
        lambda options: measure_dense(request, options),
        lambda: check_dense(data, classes, ignore_index),
    )


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
    from dovetail.data.values import values_within
    from dovetail.transfer.ranges import check_ranges
    from dovetail.transfer.start import values_of_run

    if not str(asked["data"]):
        raise DovetailError("No data was named; give a labelled set with --data.")
    check_ranges(asked)
    run_values = values_of_run(asked["run"]) if asked["run"] is not None else ()
    with values_within(asked.get("value_range") or run_values):
        return measured_within(kind, asked, job, check)


def measured_within(
    kind: str, asked: dict[str, Any], job: Callable[[Mapping[str, Any]], Results], check: Callable[[], None]
) -> Results | None:
    """Do what is left to do for `measured`, with the range of values that images are read with."""
    from dovetail.transfer.ranges import check_writable

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
    with in_use(Path(out)):
        results = job({name: value for name, value in asked.items() if name != "check"} | {"out": out})
        results.write(Path(out))
    return results
