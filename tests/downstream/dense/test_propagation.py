"""Labels carried along sequences, and DAVIS's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dovetail.downstream.dense.boundaries import boundary, boundary_f, region_iou
from dovetail.downstream.dense.propagation import (
    PropagationOptions,
    SequenceScores,
    over_sequences,
    propagate,
    sequence_scores,
)
from dovetail.downstream.dense.sequences import find_sequences
from dovetail.errors import DovetailError
from tests.downstream.dense.scenes import moving_square


def square(top: int, left: int, side: int = 6, size: int = 24) -> np.ndarray:
    """Return a bool mask with a filled square."""
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def frames(count: int, shift: int) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Return maps [count, 8, 24, 24] of two objects that move over a ground, and their masks."""
    generator = torch.Generator().manual_seed(0)
    looks = torch.eye(8)[:3] * 4
    masks: list[torch.Tensor | None] = []
    maps = []
    for index in range(count):
        labels = torch.zeros(24, 24, dtype=torch.int64)
        labels[3:9, 2 + shift * index : 8 + shift * index] = 1
        labels[14:20, 2:8] = 2
        masks.append(labels)
        maps.append(looks[labels].permute(2, 0, 1) + 0.1 * torch.randn(8, 24, 24, generator=generator))
    return torch.stack(maps), masks


def test_labels_follow_the_features() -> None:
    maps, masks = frames(6, shift=2)
    first = masks[0]
    assert first is not None
    found = list(propagate(maps, first, labels=3))
    assert len(found) == 5
    for predicted, truth in zip(found, masks[1:], strict=True):
        assert truth is not None
        assert (predicted == truth).float().mean() > 0.99
    scores = sequence_scores("two", found, masks)
    assert len(scores.region) == 2
    assert min(scores.region) > 0.95
    # Where labels may not move, the one that does is lost, and the other one is not.
    narrow = list(propagate(maps, first, labels=3, options=PropagationOptions(radius=0)))
    lost = sequence_scores("two", narrow, masks)
    assert lost.region[0] < 0.6
    assert lost.region[1] > 0.95


def test_one_frame_and_one_neighbour_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 5, 4, 4, generator=generator)
    first = torch.randint(0, 2, (4, 4), generator=generator)
    options = PropagationOptions(neighbours=1, radius=1)
    (found,) = propagate(maps, first, labels=2, options=options)
    unit = torch.nn.functional.normalize(maps, dim=1)
    for row in range(4):
        for column in range(4):
            near = [(r, c) for r in range(4) for c in range(4) if abs(r - row) <= 1 and abs(c - column) <= 1]
            best = max(near, key=lambda place: float(unit[1, :, row, column] @ unit[0, :, place[0], place[1]]))
            assert found[row, column] == first[best]


def test_only_the_last_frames_and_the_first_are_asked() -> None:
    maps, masks = frames(5, shift=0)
    maps[1] = 0.0  # a frame without features takes any label
    first = masks[0]
    assert first is not None
    *_, last = propagate(maps, first, labels=3, options=PropagationOptions(frames=1))
    assert (last == first).all()


def test_scores_of_one_object_by_hand() -> None:
    truth = square(5, 5)
    assert region_iou(truth, truth) == boundary_f(truth, truth) == 1.0
    assert region_iou(square(5, 8), truth) == pytest.approx(18 / 54)
    empty = np.zeros_like(truth)
    assert region_iou(empty, empty) == boundary_f(empty, empty) == 1.0
    assert region_iou(empty, truth) == boundary_f(empty, truth) == 0.0
    # 24 pixels' diagonal times 0.008 is one pixel: a shift by one is none, one by three leaves parts of two edges.
    assert boundary_f(square(5, 6), truth) == 1.0
    assert boundary_f(square(5, 8), truth) == pytest.approx(boundary_f(truth, square(5, 8)))
    assert 0 < boundary_f(square(5, 8), truth) < 1
    assert boundary(truth).sum() == 24
    void = np.zeros_like(truth)
    void[:, 11:] = True
    assert region_iou(truth | square(5, 11), truth, void) == boundary_f(truth | square(5, 11), truth, void) == 1.0


def test_first_and_last_frames_do_not_count_and_missing_masks_are_left_out() -> None:
    masks: list[torch.Tensor | None] = [torch.from_numpy(square(5, 5)).long() for _ in range(5)]
    wrong = torch.zeros(24, 24, dtype=torch.int64)
    right = masks[0]
    assert right is not None
    masks[2] = None
    assert sequence_scores("s", [right, wrong, right, wrong], masks).region == (1.0,)
    masks[1] = masks[3] = None
    with pytest.raises(DovetailError, match="has no mask after the first frame"):
        sequence_scores("s", [right] * 4, masks)
    with pytest.raises(DovetailError, match="has no objects"):
        sequence_scores("s", [right], [torch.zeros(24, 24, dtype=torch.int64), right])


def test_means_are_over_objects_and_intervals_over_sequences() -> None:
    found = [SequenceScores("a", (0.2, 0.4), (0.6, 0.6)), SequenceScores("b", (0.9,), (0.3,))]
    scores = over_sequences(found)
    assert scores["J"].mean == pytest.approx(0.5)
    assert scores["F"].mean == pytest.approx(0.5)
    assert scores["J&F"].mean == pytest.approx(0.5)
    assert (scores["J"].low, scores["J"].high) == pytest.approx((0.3, 0.9))
    assert scores["J"].over == "sequences"
    assert over_sequences(found[:1])["J"].low is None


def test_sequences_are_found_in_folders(tmp_path: Path) -> None:
    moving_square(tmp_path / "plain", frames=3)
    (one,) = find_sequences(tmp_path / "plain")
    assert (one.name, len(one.frames), len(one.masks)) == ("square", 3, 3)
    davis = tmp_path / "DAVIS"
    moving_square(tmp_path / "raw", frames=3, name="kept")
    moving_square(tmp_path / "other", frames=3, name="left")
    for name, source in (("kept", "raw"), ("left", "other")):
        for kind, place in (("images", "JPEGImages"), ("masks", "Annotations")):
            (davis / place / "480p").mkdir(parents=True, exist_ok=True)
            (tmp_path / source / kind / name).rename(davis / place / "480p" / name)
    assert [one.name for one in find_sequences(tmp_path)] == ["kept", "left"]
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    (davis / "ImageSets" / "2017" / "val.txt").write_text("kept\n")
    assert [one.name for one in find_sequences(davis)] == ["kept"]
    (davis / "Annotations" / "480p" / "kept" / "00000.png").unlink()
    with pytest.raises(DovetailError, match=r"00000.png, has no mask"):
        find_sequences(davis)
