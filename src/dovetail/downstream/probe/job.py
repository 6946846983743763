"""Implements `dovetail evaluate knn` and `dovetail evaluate linear`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dovetail.data.reading.values import value_range
from dovetail.downstream.evaluate_options import EvaluateKnnOptions, EvaluateLinearOptions
from dovetail.downstream.labels.class_sets import ClassSet
from dovetail.downstream.labels.images import open_splits
from dovetail.downstream.machine import Machine, machine
from dovetail.downstream.options import FinetuneClassifyOptions, MeasureOptions
from dovetail.downstream.probe.features import Features, kept_features, of_central_crops
from dovetail.downstream.probe.knn import knn_predictions, pieces
from dovetail.downstream.probe.linear import ProbeOptions, choose_rate, train_probes
from dovetail.downstream.progress import progress
from dovetail.downstream.start import Source, source_of, weights_mark
from dovetail.downstream.table.results import Results, Row, Score, fingerprint, over_images
from dovetail.errors import OptionsError, RunError, counted


def evaluate_knn(asked: EvaluateKnnOptions) -> Results:
    """Classify the validation images by their nearest training images."""
    ready = prepared(asked)
    source, where, train, held_out, split = ready
    usable, about_k = usable_k(asked, len(train))
    bank, queries = (features_of(source, asked, data, where, blocks=1) for data in (train, held_out))
    labels, truth = (torch.tensor(data.labels, device=where.device) for data in (train, held_out))
    with progress("neighbours", len(queries)) as advance:
        found = knn_predictions(
            queries.to(where.device),
            bank.to(where.device),
            labels,
            classes=len(train.names),
            k=usable,
            temperature=asked.temperature,
            on_batch=advance,
        )
    rows = tuple(
        Row({"k": k}, {"top1": over_images((predicted == truth).cpu().numpy(), seed=asked.seed)})
        for k, predicted in found.items()
    )
    notes = (*split, *([about_k] if about_k else []))
    return Results("evaluate knn", rows, resolved(asked, source, where), ready.facts(), where.device, notes)


def usable_k(asked: EvaluateKnnOptions, images: int) -> tuple[list[int], str]:
    """Return the numbers of neighbours that the training images allow, and a sentence on the others.

    If none of the default numbers fits, it is 1.

    Raises:
        OptionsError: None of the specified numbers fits.
    """
    usable = [k for k in dict.fromkeys(asked.k) if k <= images]
    left_out = sorted(set(asked.k) - set(usable))
    if not usable and "k" in asked.named:
        raise OptionsError(
            f"All values of k in {list(asked.k)} exceed the number of training images ({images}); reduce --k."
        )
    only = f"because there {'is' if images == 1 else 'are'} only {counted(images, 'training image')}"
    if not usable:
        return [1], f"Used k = 1, {only}, fewer than the default values {left_out}; choose others with --k."
    return usable, f"Skipped k = {left_out}, {only}." if left_out else ""


def evaluate_linear(asked: EvaluateLinearOptions) -> Results:
    """Train a linear probe on frozen features."""
    ready = prepared(asked)
    source, where, train, held_out, split = ready
    options = ProbeOptions(
        classes=len(train.names),
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        rates=tuple(sorted(set(asked.lr))),
        weight_decay=asked.weight_decay,
        seed=asked.seed,
    )
    blocks = asked.blocks if is_tokens(source) else 1
    known, unknown = (features_of(source, asked, data, where, blocks=blocks) for data in (train, held_out))
    known, unknown = known.to(where.device), unknown.to(where.device)
    labels, truth = (torch.tensor(data.labels, device=where.device) for data in (train, held_out))
    sweep = len(options.rates) > 1
    with progress("linear probe", options.epochs * (1 + sweep)) as advance:
        rate, accuracy = options.rates[0], dict[float, float]()
        if sweep:
            rate, accuracy = choose_rate(known, labels, options, on_epoch=lambda: advance(1))
        probe = train_probes(known, labels, [rate], options, on_epoch=lambda: advance(1))
    if not bool(probe.weight.isfinite().all()):
        raise RunError(f"The weights of the classifier are NaN at the learning rate {rate:g}; use a lower --lr.")
    logits = torch.cat([probe.logits(part)[0] for part in pieces(unknown, 8192)])
    row = Row({"lr": rate, "features": f"{known.shape[1]}"}, accuracies(logits, truth, seed=asked.seed))
    listed = ", ".join(f"{one:g}: {100 * share:.2f}" for one, share in accuracy.items())
    notes = [f"Selected learning rate {rate:g} on a tenth of the training images ({listed})."] if sweep else []
    differ = len(set(accuracy.values())) > 1
    if differ and rate in (options.rates[0], options.rates[-1]):
        notes.append("The selected learning rate is at the end of the sweep; widen it with --lr.")
    config = resolved(asked, source, where)
    return Results("evaluate linear", (row,), config, ready.facts(), where.device, (*split, *notes))


def accuracies(logits: Tensor, truth: Tensor, *, seed: int) -> dict[str, Score]:
    """Return the top-1 accuracy, and top-5 for more than five classes, of logits [N, K]."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = (best == truth[:, None]).cpu().numpy()
    scores = {"top1": over_images(right[:, 0], seed=seed)}
    if logits.shape[1] > 5:
        scores["top5"] = over_images(right.max(1), seed=seed)
    return scores


class Prepared(NamedTuple):
    """Source of the model, device and precision, training and validation images, and a note on their split."""

    source: Source
    where: Machine
    train: ClassSet
    held_out: ClassSet
    notes: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Return the facts about the data for results.json."""
        return {
            "fingerprint": fingerprint(
                {*self.train.files(), *self.held_out.files()}, [*self.train.content(), *self.held_out.content()]
            ),
            "train_images": len(self.train),
            "test_images": len(self.held_out),
            "classes": len(self.train.names),
        }


def prepared(asked: EvaluateKnnOptions | EvaluateLinearOptions | FinetuneClassifyOptions) -> Prepared:
    """Prepare an evaluation or a fine-tuning on classes.

    A model is built after its images are opened, which takes less time. A run only has to be read.
    """
    splits = open_splits(asked.data) if asked.run is None else None
    source = source_of(asked.run, asked.model, image_size=asked.image_size, encoder=asked.encoder)
    where = machine(asked.accelerator, asked.precision, asked.workers)
    train, held_out, note = splits or open_splits(asked.data)
    empty = [train.names[label] for label in sorted(set(range(len(train.names))) - set(train.labels))]
    notes = (note, f"There are no training images of class {', '.join(empty)}." if empty else "")
    return Prepared(source, where, train, held_out, tuple(filter(None, notes)))


def is_tokens(source: Source) -> bool:
    """Return whether the source's encoder is a ViT, whose blocks can be selected."""
    from dovetail.networks.vit import ViTNetwork

    return isinstance(source.network("random"), ViTNetwork)


def features_of(source: Source, asked: MeasureOptions, data: ClassSet, where: Machine, *, blocks: int) -> Tensor:
    """Return the features of all images, from the cache if possible."""

    def compute() -> Tensor:
        with seeded_start(asked.seed):
            model = Features(source.network("random" if source.run is None else "all"), blocks=blocks)
        with progress("features", len(data)) as advance:
            return of_central_crops(model, data, **source.pixels(), machine=where, on_batch=advance)

    drawn = asked.seed if source.run is None else None  # seed of random weights
    marks = (source.constructor, weights_mark(source), source.image_size, blocks, where.precision, drawn, value_range())
    features, _ = kept_features(features_folder(asked), compute, data, marks=marks)
    return features


def features_folder(asked: MeasureOptions) -> Path:
    """Return the folder of cached features: in the run folder, or next to the results without a run."""
    out = Path(asked.out)
    in_run = asked.run is not None and out.parent == Path(asked.run)
    return (out.parent if in_run else out) / "features"


@contextmanager
def seeded_start(seed: int) -> Iterator[None]:
    """Seed the global random state in the block, for random weights, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def resolved(asked: MeasureOptions, source: Source, where: Machine, options: Any = None) -> dict[str, Any]:
    """Return the resolved configuration for results.json.

    Args:
        asked: Options of the command, which may be "auto".
        source: Source with model and weights.
        where: Device and precision.
        options: Dataclass with further resolved options.
    """
    known: dict[str, Any] = {} if options is None else asdict(options)
    known |= {"model": source.constructor, "weights": weights_mark(source), "precision": where.precision}
    plain = {name: as_plain(value) for name, value in asked.as_dict().items()}
    del plain["check"]
    if plain.get("image_size", 0) is None:
        known["image_size"] = source.image_size
    return {**plain, **{f"resolved_{name}": value for name, value in known.items()}}


def as_plain(value: Any) -> Any:
    """Return the value of an option for results.json: paths as text, and objects by the name of their class."""
    if isinstance(value, (nn.Module, Dataset)):
        return f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Mapping):
        return {name: as_plain(one) for name, one in value.items()}
    return str(value) if isinstance(value, Path) else value
