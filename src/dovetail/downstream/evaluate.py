"""`evaluate knn`, `evaluate linear` and `evaluate dense`: evaluation of a run's frozen features."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dovetail.downstream.evaluate_options import EvaluateDenseOptions, EvaluateKnnOptions, EvaluateLinearOptions
from dovetail.downstream.options import STARTS, FinetuneOptions, MeasureOptions
from dovetail.errors import OptionsError, unknown_name
from dovetail.files.locking import in_use
from dovetail.files.writable import check_writable
from dovetail.options import takes
from dovetail.provenance import refuse_code_in_file

if TYPE_CHECKING:
    from dovetail.downstream.table.results import Results


@takes(EvaluateKnnOptions)
def evaluate_knn(options: EvaluateKnnOptions) -> Results | None:
    """Evaluate a run's frozen features with a weighted k-nearest-neighbour classifier.

    Returns:
        The results, or None with `check` if no faults were found.

    Raises:
        DovetailError: An option is invalid, or the evaluation cannot be carried out.
    """
    from dovetail.downstream.labels.checking import check_images
    from dovetail.downstream.probe.job import evaluate_knn as job

    return measured("evaluate-knn", options, job, lambda: check_images(options.data))


@takes(EvaluateLinearOptions)
def evaluate_linear(options: EvaluateLinearOptions) -> Results | None:
    """Evaluate a run's frozen features with a linear classifier. Features are computed once without augmentation.

    Returns:
        The results, or None with `check` if no faults were found.

    Raises:
        DovetailError: An option is invalid, or the evaluation cannot be carried out.
    """
    from dovetail.downstream.labels.checking import check_images
    from dovetail.downstream.probe.job import evaluate_linear as job

    return measured("evaluate-linear", options, job, lambda: check_images(options.data))


@takes(EvaluateDenseOptions)
def evaluate_dense(options: EvaluateDenseOptions) -> Results | None:
    """Evaluate frozen feature maps of encoder and decoder on labelled pixels.

    Returns:
        The results, or None with `check` if no faults were found.

    Raises:
        DovetailError: An option is invalid, or the evaluation cannot be carried out.
    """
    from dovetail.downstream.dense.checking import check_dense
    from dovetail.downstream.dense.job import measure_dense
    from dovetail.downstream.start import channels_of_run

    return measured(
        "evaluate-dense",
        options,
        measure_dense,
        lambda: check_dense(
            options.data,
            options.classes,
            options.ignore_index,
            list(options.label_map),
            channels=channels_of_run(options.run),
        ),
    )


def check_early(options: MeasureOptions) -> None:
    """Raise `DovetailError` without a dataset, a model or a writable folder for results, or for an unknown start.

    The command line calls this before PyTorch is imported.
    """
    if isinstance(options.data, str) and not options.data:
        raise OptionsError("--data is missing; specify a labelled dataset.")
    if options.check:
        return
    check_writable(folder_for("results", options))
    if options.run is None and options.model is None:
        raise OptionsError("--run is missing; specify a pre-training run, or a --model with random weights.")
    known = ("auto", *STARTS)
    for name in options.start if isinstance(options, FinetuneOptions) else ():
        if name not in known and not Path(name).exists():
            raise unknown_name("start", name, known)


OptionsT = TypeVar("OptionsT", bound=MeasureOptions)


def measured(
    kind: str,
    options: OptionsT,
    job: Callable[[OptionsT], Results],
    check: Callable[[], None],
    *,
    ending: bool = True,
) -> Results | None:
    """Check the data, or evaluate and write results. All evaluation and fine-tuning commands use this function.

    Args:
        kind: Name of the default results folder within the run folder.
        options: Options of the command.
        job: Carries out the evaluation.
        check: Reads the data and lists its faults.
        ending: Whether to print how a fine-tuned model is used.

    Returns:
        The results, or None with `check` if no faults were found.

    Raises:
        DovetailError: The data or a writable folder is missing, or the job or the check fails.
    """
    from dovetail.data.reading.values import values_within
    from dovetail.downstream.start import values_of_run

    refuse_code_in_file(options)
    check_early(options)
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
            if ending and kind.startswith("finetune"):
                print(f"To use the model: dovetail predict --run {shlex.quote(str(out))} --data IMAGES --out PREDICTED")
        return results


def folder_for(kind: str, options: MeasureOptions) -> Path:
    """Return the folder for results: the specified one, or one in the run folder."""
    if str(options.out):
        return Path(options.out)
    if options.run is None:
        raise OptionsError("--out is missing; specify a folder for the results.")
    folder = Path(options.run)
    return (folder if folder.is_dir() else folder.parent) / kind
