"""All protocols together on maps in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from dovetail.downstream.dense import ArrayMaps, DenseOptions, DenseScore, dense_scores, difference
from dovetail.errors import DovetailError
from tests.downstream.dense.scenes import clouds


def miou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return mIoU over the classes that occur."""
    found = []
    for label in np.union1d(predicted, truth):
        ours, theirs = predicted == label, truth == label
        found.append((ours & theirs).sum() / (ours | theirs).sum())
    return float(np.mean(found))


def sources(train: int = 10, test: int = 6) -> tuple[ArrayMaps, ArrayMaps]:
    """Return clouds with masks at the maps' own size, so that no resizing blurs the known answer."""
    (known, known_masks), (maps, masks) = clouds(train), clouds(test, seed=1)
    return ArrayMaps({"x": known}, known_masks[:, 2::4, 2::4]), ArrayMaps({"x": maps}, masks[:, 2::4, 2::4])


def flat(source: ArrayMaps) -> tuple[np.ndarray, np.ndarray]:
    return source.maps["x"].permute(0, 2, 3, 1).reshape(-1, 6).numpy(), source.masks.flatten().numpy()


def by_protocol(scores: list[DenseScore]) -> dict[str, DenseScore]:
    return {one.protocol: one for one in scores}


def test_numbers_are_those_of_scikit_learn() -> None:
    train, test = sources()
    options = DenseOptions(lr=(0.3,), weight_decay=(1e-3,), steps=2000, k=1, clusters=(0,), finest_stride=1)
    found = by_protocol(dense_scores(train, test, classes=3, options=options))
    (known, labels), (cells, truth) = flat(train), flat(test)
    scaler = StandardScaler().fit(known)
    reference = LogisticRegression(C=1 / (1e-3 * len(known)), tol=1e-8, max_iter=500)
    reference.fit(scaler.transform(known), labels)
    expected = miou(reference.predict(scaler.transform(cells)), truth)
    assert found["linear"].miou.mean == pytest.approx(expected, abs=0.01)
    neighbours = KNeighborsClassifier(1, metric="cosine").fit(known, labels)
    assert found["retrieval"].miou.mean == pytest.approx(miou(neighbours.predict(cells), truth), abs=1e-6)
    clustered = KMeans(3, n_init=10, random_state=0).fit_predict(StandardScaler().fit_transform(cells))
    orders = itertools.permutations(range(3))
    assert found["clusters"].miou.mean == pytest.approx(
        max(miou(np.array(order)[clustered], truth) for order in orders), abs=0.02
    )


def test_scores_tell_good_maps_from_bad_ones() -> None:
    (known, known_masks), (maps, masks) = clouds(8), clouds(5, seed=1)
    generator = torch.Generator().manual_seed(5)
    noise = [torch.randn(one.shape, generator=generator) for one in (known, maps)]
    train = ArrayMaps({"good": known, "bad": noise[0]}, known_masks)
    test = ArrayMaps({"good": maps, "bad": noise[1]}, masks)
    options = DenseOptions(labels=(2, 1.0), seeds=2, steps=60, clusters=(0, 12))
    scores = dense_scores(train, test, classes=3, options=options)
    assert [(one.at, one.protocol, one.images, one.clusters) for one in scores] == [
        *((at, "linear", images, None) for at in ("good",) for images in (2, 8)),
        *((at, "retrieval", images, None) for at in ("good",) for images in (2, 8)),
        *((at, "linear", images, None) for at in ("bad",) for images in (2, 8)),
        *((at, "retrieval", images, None) for at in ("bad",) for images in (2, 8)),
        *((at, "clusters", None, count) for at in ("good", "bad") for count in (3, 12)),
    ]
    half = len(scores) // 2
    assert half == 6
    good = [one for one in scores if one.at == "good"]
    for one in good:
        (bad,) = [two for two in scores if two.at == "bad" and two.setting() | {"at": "good"} == one.setting()]
        gap = difference(one.counts, bad.counts)
        assert gap.low is not None
        assert gap.low > 0.1, one.setting()
    for one in scores:
        assert len(one.miou.values) == len(one.counts) == 2
        assert one.counts[0].shape == (5, 3, 3)
        assert one.miou.low is not None
        assert one.miou.low <= one.miou.mean
        assert one.miou.mean == pytest.approx(np.mean(one.class_iou))
    assert len(scores[0].chosen) == 2
    again = dense_scores(train, test, classes=3, options=options)
    assert [one.miou for one in again] == [one.miou for one in scores]


def test_what_is_ignored_counts_nowhere() -> None:
    train, test = sources()
    masks = [source.masks.clone() for source in (train, test)]
    for one in masks:
        one[:, :4] = 255
    cut = [source.maps["x"].clone() for source in (train, test)]
    for one in cut:
        one[:, :, :4] = 1e3  # whatever is there
    options = DenseOptions(protocols=("linear", "retrieval"), steps=60, lr=(0.1,), weight_decay=(0.0,), finest_stride=1)
    whole = dense_scores(*(ArrayMaps({"x": m}, y) for m, y in zip(cut, masks, strict=True)), classes=3, options=options)
    part = dense_scores(
        *(ArrayMaps({"x": m[:, :, 4:]}, y[:, 4:]) for m, y in zip(cut, masks, strict=True)), classes=3, options=options
    )
    for one, two in zip(whole, part, strict=True):
        assert int(one.counts[0][:, 1].sum()) == int((masks[1] != 255).sum())
        assert one.miou.mean == pytest.approx(two.miou.mean, abs=0.03)  # other cells were drawn first


def test_the_score_of_the_commonest_class_is_that_of_predicting_it() -> None:
    train, test = sources()
    masks = test.masks.clone()
    masks[:, :3] = 0
    options = DenseOptions(protocols=("linear",), steps=1, finest_stride=1)
    for classes in (3, 5):  # two of them occur nowhere
        (score,) = dense_scores(train, ArrayMaps(test.maps, masks), classes=classes, options=options)
        everywhere = np.zeros(masks.shape)
        assert score.commonest_miou == pytest.approx(miou(everywhere, masks.numpy()))


def test_images_without_labels_are_no_hindrance() -> None:
    train, test = sources()
    masks = train.masks.clone()
    masks[[0, 3, 7]] = 255
    options = DenseOptions(protocols=("linear", "retrieval"), steps=60, finest_stride=1)
    for one in dense_scores(ArrayMaps(train.maps, masks), test, classes=3, options=options):
        assert one.miou.mean > 0.5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": (0.0,)}, "labels expects"),
        ({"labels": (2.5,)}, "must be an integer"),
        ({"labels": (11,)}, "only 10 training images"),
        ({"labels": ()}, "labels is empty"),
        ({"protocols": ("linea",)}, "did you mean 'linear'"),
        ({"lr": (0.0,)}, "lr expects"),
        ({"k": 0}, "k is 0"),
        ({"clusters": (-1,)}, "clusters expects"),
        ({"weight_decay": ()}, "at least one value"),
    ],
)
def test_refusals(options: dict[str, object], sentence: str) -> None:
    train, test = sources()
    with pytest.raises(DovetailError, match=sentence):
        dense_scores(train, test, classes=3, options=DenseOptions(**options))  # type: ignore[arg-type]


def test_labels_beyond_the_classes_are_refused() -> None:
    train, test = sources()
    with pytest.raises(DovetailError, match="there are 2 classes"):
        dense_scores(train, test, classes=2, options=DenseOptions(steps=1))
    nothing = ArrayMaps(test.maps, torch.full_like(test.masks, 255))
    with pytest.raises(DovetailError, match="have no labelled pixels"):
        dense_scores(train, nothing, classes=3, options=DenseOptions(steps=1, protocols=("retrieval",)))
