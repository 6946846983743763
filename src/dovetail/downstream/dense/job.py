"""Implements `dovetail evaluate dense`: evaluates frozen feature maps on labelled images or sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from torch import Tensor

from dovetail.downstream.dense.maps import NetworkMaps, check_size, resolve_taps
from dovetail.downstream.dense.options import DenseOptions, ImageProtocol, Protocol, label_counts
from dovetail.downstream.dense.propagation import (
    PropagationOptions,
    SequenceScores,
    over_sequences,
    propagate,
    sequence_scores,
)
from dovetail.downstream.dense.scores import DenseScore, dense_scores
from dovetail.downstream.dense.sequences import ImageSequence, find_sequences
from dovetail.downstream.evaluate_options import EvaluateDenseOptions
from dovetail.downstream.labels.labelled import Labelled, existing, read_image
from dovetail.downstream.labels.maps import read_label_map
from dovetail.downstream.labels.readers import SegmentationData, open_segmentation
from dovetail.downstream.machine import Machine, machine
from dovetail.downstream.probe.job import resolved, seeded_start
from dovetail.downstream.progress import progress
from dovetail.downstream.start import Source, source_of
from dovetail.downstream.table.results import Results, Row, Score, fingerprint
from dovetail.errors import DataError, ModelError, OptionsError, counted, unknown_name
from dovetail.networks.network import Network

FINEST_STRIDE = DenseOptions().finest_stride
FEWEST_IMAGES = 10  # resampling fewer test images gives intervals that are much too narrow


@dataclass(frozen=True)
class Subject:
    """A network with its weights, its device and image size, and the feature maps to evaluate."""

    network: Network
    source: Source
    where: Machine
    at: dict[str, tuple[str, ...]]

    def maps(self, data: Any, ignore_index: int) -> NetworkMaps:
        """Return feature maps of labelled images."""
        source = self.source
        return NetworkMaps(
            self.network, data, tuple(self.at), source.image_size, source.mean, source.std, self.where, ignore_index
        )

    def note(self) -> str:
        """Return a sentence that resolves names such as "encoder" to taps, or an empty string."""
        told = [f"{name} is {'+'.join(taps)}" for name, taps in self.at.items() if name != "+".join(taps)]
        return f"Maps: {', '.join(told)}." if told else ""


def measure_dense(request: EvaluateDenseOptions) -> Results:
    """Evaluate frozen feature maps on labelled images or sequences."""
    meaning = read_label_map(list(request.label_map), request.ignore_index)
    sequences = find_sequences(existing(request.data), meaning)
    protocols = chosen_protocols(request.protocols, bool(sequences))
    where = machine(request.accelerator, request.precision, request.workers)
    images = None if sequences else images_of(request)  # opened before the model, which takes longer
    subject = subject_of(request, where)
    config = resolved(request, subject.source, where)
    if images is None and subject.source.in_channels != 3:
        raise ModelError(
            f"The model expects {subject.source.in_channels} channels, but frames of videos are read with 3 (RGB); use "
            "images with masks."
        )
    if images is None:
        rows, facts = sequence_rows(subject, sequences, request)
        return Results(
            "evaluate dense", tuple(rows), config, facts, where.device, tuple(filter(None, [subject.note()]))
        )
    data = images.with_channels(subject.source.in_channels)
    options = image_options(request, protocols)
    scores = image_scores(subject, data, options)
    few = told_of_few(len(data.val))
    notes = (subject.note(), data.note, few, *notes_on(scores, data.classes, options))
    return Results(
        "evaluate dense",
        tuple(Row(one.setting(), {"mIoU": without_interval(one.miou) if few else one.miou}) for one in scores),
        config,
        facts_of(data),
        where.device,
        tuple(filter(None, notes)),
        details={
            "scores": [details_of(one, data.names) for one in scores],
            "commonest_class_miou": scores[0].commonest_miou if scores else None,
        },
    )


def images_of(request: EvaluateDenseOptions) -> SegmentationData:
    """Open the labelled images."""
    return open_segmentation(
        request.data, classes=request.classes, ignore_index=request.ignore_index, label_map=list(request.label_map)
    )


def image_options(request: EvaluateDenseOptions, protocols: tuple[ImageProtocol, ...]) -> DenseOptions:
    """Return the options for evaluating images."""
    return DenseOptions(
        protocols=protocols,
        labels=tuple(request.labels),
        seeds=request.seeds,
        seed=request.seed,
        lr=tuple(request.lr),
        weight_decay=tuple(request.weight_decay),
        steps=request.steps,
        memory=request.memory,
        k=request.k,
        temperature=request.temperature,
        clusters=tuple(request.clusters),
    )


def chosen_protocols(asked: Sequence[str], on_sequences: bool) -> tuple[ImageProtocol, ...]:
    """Return the protocols for images, or none for sequences. "auto" selects all protocols that suit the data.

    Raises:
        OptionsError: A protocol is unknown, or does not suit the data.
    """
    known = get_args(Protocol)
    fit = ("propagation",) if on_sequences else get_args(ImageProtocol)
    names = tuple(dict.fromkeys(one for name in asked for one in (fit if name == "auto" else (name,))))
    if not names:
        raise OptionsError("--protocols is empty; specify linear, retrieval, clusters or propagation.")
    for name in names:
        if name not in known:
            raise unknown_name("protocol", name, known)
        if name not in fit:
            kind = "sequences (folders of frames)" if on_sequences else "images with masks"
            raise OptionsError(f"The protocol {name!r} does not support {kind}; use {', '.join(fit)}.")
    return () if on_sequences else cast(tuple[ImageProtocol, ...], names)


def subject_of(request: EvaluateDenseOptions, where: Machine) -> Subject:
    """Return the network with its weights. Random weights are drawn with the seed."""
    source = source_of(
        request.run, request.model, image_size=request.image_size, init=request.init, encoder=request.encoder
    )
    with seeded_start(request.seed):
        network = source.network("random" if source.run is None else "all")
    check_size(network, source.image_size)
    return Subject(network, source, where, resolve_taps(network.taps, request.at))


def image_scores(subject: Subject, data: SegmentationData, options: DenseOptions) -> list[DenseScore]:
    """Return the scores on labelled images."""
    trained = any(name != "clusters" for name in options.protocols)
    if trained:
        label_counts(options.labels, len(data.train))  # checked before the images are read
    passes = len(data.train) * trained + len(data.val) * (1 + ("clusters" in options.protocols))
    train, test = (subject.maps(part, part.ignore_index) for part in (data.train, data.val))
    with progress("maps", passes) as advance:
        return dense_scores(train, test, classes=data.classes, options=options, on_images=advance)


def told_of_few(images: int) -> str:
    """Return why there is no interval if there are few test images, or an empty string."""
    if images >= FEWEST_IMAGES:
        return ""
    return (
        f"There is no interval, because the scores of {counted(images, 'test image')} do not tell how much others "
        f"would vary; use {FEWEST_IMAGES} or more."
    )


def without_interval(score: Score) -> Score:
    """Return a score without its interval."""
    return replace(score, low=None, high=None, over=None)


def notes_on(scores: Sequence[DenseScore], classes: int, options: DenseOptions) -> Iterator[str]:
    """Yield notes on the scores."""
    if "clusters" in options.protocols:
        measured = {one.clusters for one in scores}
        left_out = [one for one in options.clusters if (one or classes) not in measured]
        if left_out:
            yield f"Skipped clusters = {left_out}, because the test images have fewer cells."
    for one in scores:
        for end, further in ((min(options.lr), "smaller"), (max(options.lr), "larger")):
            # With few held-out cells single seeds select any rate.
            seeds = sum(chosen["at_end"] and chosen["lr"] == end for chosen in one.chosen)
            if seeds > len(one.chosen) / 2:
                yield (
                    f"The learning rate selected for {one.at} with {one.images} images is at the end of the sweep "
                    f"({end:g}); add {further} ones with --lr."
                )


def details_of(score: DenseScore, names: Sequence[str]) -> dict[str, Any]:
    """Return the score of each class, and the selected hyperparameters."""
    per_class = {name: value for name, value in zip(names, score.class_iou, strict=True) if value == value}
    return score.setting() | {"iou": per_class, "chosen": [dict(one) for one in score.chosen]}


def facts_of(data: SegmentationData) -> dict[str, Any]:
    """Return the facts about labelled images for results.json."""
    return {
        "format": data.format,
        "fingerprint": fingerprint({*data.train.files(), *data.val.files()}),
        "train_images": len(data.train),
        "test_images": len(data.val),
        "classes": data.classes,
    }


def sequence_rows(
    subject: Subject, sequences: Sequence[ImageSequence], request: EvaluateDenseOptions
) -> tuple[list[Row], dict[str, Any]]:
    """Return a row for each feature map on sequences, and the facts about them for results.json."""
    found: dict[str, list[SequenceScores]] = {at: [] for at in subject.at}
    ignore = request.ignore_index
    with progress("sequences", len(sequences) * len(found)) as advance:
        for sequence in sequences:
            labels = sequence.labels()
            for at, scores in found.items():
                predictions = carried(subject, at, sequence, labels, request)
                scores.append(sequence_scores(sequence.name, predictions, labels, ignore_index=ignore))
                advance(1)
    rows = [
        Row(
            {"at": at, "protocol": "propagation"},
            over_sequences(scores, seed=request.seed),
        )
        for at, scores in found.items()
    ]
    files = {path for one in sequences for path in (*one.frames, *one.masks) if path is not None}
    facts = {
        "format": "sequences",
        "fingerprint": fingerprint(files),
        "sequences": len(sequences),
        "frames": sum(len(one.frames) for one in sequences),
    }
    return rows, facts


def carried(
    subject: Subject, at: str, sequence: ImageSequence, labels: Sequence[Tensor | None], request: EvaluateDenseOptions
) -> Iterator[Tensor]:
    """Yield the predicted labels of every frame but the first."""
    first, ignore = labels[0], request.ignore_index
    if first is None:
        raise DataError(f"The first frame of {sequence.name} has no mask; add one.")
    maps = replace(subject.maps(Frames(sequence, first), ignore), at=(at,), batch_size=4)
    values = (one for batch in maps.batches(finest_stride=FINEST_STRIDE) for one in batch.maps[at])
    count = int(first[first != ignore].max()) + 1 if bool((first != ignore).any()) else 1
    yield from propagate(
        values, first, labels=count, options=PropagationOptions(radius=request.radius), ignore_index=ignore
    )


@dataclass(frozen=True)
class Frames:
    """The frames of a sequence as labelled images. All have the mask of the first frame, which is not used."""

    sequence: ImageSequence
    mask: Tensor

    def __len__(self) -> int:
        return len(self.sequence.frames)

    def __getitem__(self, index: int) -> Labelled:
        return Labelled(read_image(self.sequence.frames[index]), self.mask)
