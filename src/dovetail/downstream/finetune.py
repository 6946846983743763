"""`finetune segment`, `finetune classify` and `finetune detect`: fine-tuning and evaluation of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dovetail.downstream.evaluate import folder_for, measured
from dovetail.downstream.options import (
    FinetuneClassifyOptions,
    FinetuneDetectOptions,
    FinetuneOptions,
    FinetuneSegmentOptions,
)
from dovetail.errors import tell
from dovetail.options import takes

if TYPE_CHECKING:
    from dovetail.downstream.table.results import Results


@takes(FinetuneSegmentOptions)
def finetune_segment(options: FinetuneSegmentOptions) -> Results | None:
    """Fine-tune a run for semantic segmentation and evaluate mIoU, aAcc and mAcc.

    Returns:
        The results, or None with `check` if no faults were found.

    Raises:
        DovetailError: An option is invalid, or fine-tuning cannot be carried out.
    """
    return finetune_segment_with(options)


def finetune_segment_with(options: FinetuneSegmentOptions, *, ending: bool = True) -> Results | None:
    """Carry out `finetune_segment`. With `ending`, print what can be done next."""
    from dovetail.downstream.labels.checking import check_segmentation
    from dovetail.downstream.segment.job import finetune_segment as job
    from dovetail.downstream.start import channels_of_run

    return with_pages(
        "finetune-segment",
        options,
        partial(job, ending=ending),
        lambda: check_segmentation(
            options.data,
            options.classes,
            options.ignore_index,
            list(options.label_map),
            channels=channels_of_run(options.run),
        ),
        ending=ending,
    )


@takes(FinetuneDetectOptions)
def finetune_detect(options: FinetuneDetectOptions) -> Results | None:
    """Fine-tune a run for object detection or instance segmentation and evaluate COCO's average precision.

    Returns:
        The results, or None with `check` if no faults were found.

    Raises:
        DovetailError: An option is invalid, or fine-tuning cannot be carried out.
    """
    from dovetail.downstream.detect.job import finetune_detect as job
    from dovetail.downstream.labels.checking import check_detection

    return with_pages("finetune-detect", options, job, lambda: check_detection(options.data, options.task))


@takes(FinetuneClassifyOptions)
def finetune_classify(options: FinetuneClassifyOptions) -> Results | None:
    """Fine-tune a run's encoder for classification and evaluate top-1 (and top-5) accuracy.

    Returns:
        The results, or None with `check` if no faults were found.

    Raises:
        DovetailError: An option is invalid, or fine-tuning cannot be carried out.
    """
    from dovetail.downstream.classify.job import finetune_classify as job
    from dovetail.downstream.labels.checking import check_images

    return with_pages("finetune-classify", options, job, lambda: check_images(options.data))


OptionsT = TypeVar("OptionsT", bound=FinetuneOptions)


def with_pages(
    kind: str,
    options: OptionsT,
    job: Callable[[OptionsT], Results],
    check: Callable[[], None],
    *,
    ending: bool = True,
) -> Results | None:
    """Run `measured`, write the page of the fine-tuning, and add its results to the run's page."""
    results = measured(kind, options, job, check, ending=ending)
    if results is None:
        return None
    from dovetail.report.finetuning_page import write_pages

    run = Path(options.run) if options.run is not None and Path(options.run).is_dir() else None
    pages = write_pages(folder_for(kind, options), results, run)
    tell(f"Results, curves and some test images: {' and '.join(map(str, pages))}")
    return results
