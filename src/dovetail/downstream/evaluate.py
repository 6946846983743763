"""`evaluate knn`, `evaluate linear` and `evaluate dense`: how good a run's frozen features are."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dovetail.downstream.options import EvaluateDenseOptions, EvaluateKnnOptions, EvaluateLinearOptions, MeasureOptions
from dovetail.errors import OptionsError
from dovetail.files.locking import in_use
from dovetail.options import takes

if TYPE_CHECKING:
    from dovetail.downstream.table.results import Results


@takes(EvaluateKnnOptions)
def evaluate_knn(options: EvaluateKnnOptions) -> Results | None:
    """Classify images by the weighted votes of their nearest neighbours among a run's frozen features.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    from dovetail.downstream.labels.checking import check_images
    from dovetail.downstream.probe.job import evaluate_knn as job

    return measured("evaluate-knn", options, job, lambda: check_images(options.data))


@takes(EvaluateLinearOptions)
def evaluate_linear(options: EvaluateLinearOptions) -> Results | None:
    """Train a linear classifier on a run's frozen features, computed once without augmentation.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    from dovetail.downstream.labels.checking import check_images
    from dovetail.downstream.probe.job import evaluate_linear as job

    return measured("evaluate-linear", options, job, lambda: check_images(options.data))


@takes(EvaluateDenseOptions)
def evaluate_dense(options: EvaluateDenseOptions) -> Results | None:
    """Measure frozen maps of the encoder and the decoder on labelled pixels, without fine-tuning.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    from dovetail.downstream.dense.checking import check_dense
    from dovetail.downstream.dense.job import measure_dense

    return measured(
        "evaluate-dense",
        options,
        measure_dense,
        lambda: check_dense(options.data, options.classes, options.ignore_index),
    )


OptionsT = TypeVar("OptionsT", bound=MeasureOptions)


def measured(
    kind: str, options: OptionsT, job: Callable[[OptionsT], Results], check: Callable[[], None]
) -> Results | None:
    """Do what every verb that measures does: check the data, or measure and write results.

    Args:
        kind: Name of the folder for results in the run's, unless another was given.
        options: Of the verb.
        job: Measures.
        check: Reads the data and lists its faults.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: Without data, without a folder that can be written to, and as the job and the check do.
    """
    from dovetail.data.reading.values import values_within
    from dovetail.downstream.start import values_of_run
    from dovetail.files.writable import check_writable

    if not str(options.data):
        raise OptionsError("No data was named; give a labelled set with --data.")
    run_values = values_of_run(options.run) if options.run is not None else ()
    with values_within(options.value_range or run_values):
        if options.check:  # nothing is written
            check()
            return None
        out = folder_for(kind, options)
        check_writable(out)
        with in_use(out):
            results = job(options.changed(out=out))
            results.write(out)
            if kind.startswith("finetune"):
                print(f"To use the model: dovetail predict --run {shlex.quote(str(out))} --data IMAGES --out PREDICTED")
        return results


def folder_for(kind: str, options: MeasureOptions) -> Path:
    """Return the folder for results: the one named, else one in the run's."""
    if str(options.out):
        return Path(options.out)
    if options.run is None:
        raise OptionsError("No folder for the results was named; give one with --out.")
    folder = Path(options.run)
    return (folder if folder.is_dir() else folder.parent) / kind
