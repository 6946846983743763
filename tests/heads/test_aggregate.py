"""SelfPatch's neighbours and aggregation."""

from __future__ import annotations

import copy

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.heads.aggregate import (
    Neighbours,
    SelfPatchHead,
    SelfPatchHeadSpec,
    grid_of,
    most_similar,
    neighbourhood,
)
from dovetail.heads.prototypes import PrototypeHeadSpec

SIDE = 5
SMALL = PrototypeHeadSpec(hidden=16, bottleneck=6, prototypes=10)


def head(*, wraparound: bool = False, neighbours: int = 4, teacher: bool = True) -> SelfPatchHead:
    """Return a small head; always the same weights."""
    torch.manual_seed(0)
    spec = SelfPatchHeadSpec(
        cls=SMALL, patch=SMALL, neighbours=neighbours, head_channels=4, reference_wraparound=wraparound
    )
    made = spec.build(8)
    with torch.no_grad():
        for parameter in made.aggregation.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if teacher:
        made.become_teacher()
    return made.double()


def tokens(batch: int = 2) -> torch.Tensor:
    """Return [B, 25, 8] patches."""
    return torch.randn(batch, SIDE * SIDE, 8, generator=torch.Generator().manual_seed(1)).double()


def inner() -> torch.Tensor:
    """Return [N] bool: patches away from the border."""
    grid = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    grid[1:-1, 1:-1] = True
    return grid.flatten()


def test_neighbours_touch_and_never_wrap() -> None:
    around = neighbourhood(SIDE, SIDE, wraparound=False)
    for patch in range(SIDE * SIDE):
        expected = {
            y * SIDE + x
            for y in range(SIDE)
            for x in range(SIDE)
            if max(abs(y - patch // SIDE), abs(x - patch % SIDE)) == 1
        }
        assert set(around.patch[patch][around.valid[patch]].tolist()) == expected


def test_wrapping_around_changes_border_patches_only() -> None:
    torus, plain = neighbourhood(SIDE, SIDE, wraparound=True), neighbourhood(SIDE, SIDE, wraparound=False)
    assert torch.equal(torus.patch[inner()], plain.patch[inner()])
    assert torus.valid.all()
    assert torch.equal(plain.valid.all(dim=1), inner())
    patches = [head(wraparound=wraparound).aggregate(tokens())[1] for wraparound in (True, False)]
    torch.testing.assert_close(patches[0][:, inner()], patches[1][:, inner()])
    changed = (patches[0] - patches[1]).abs().amax(dim=(0, 2)) > 1e-9
    assert torch.equal(changed, ~inner())


def test_the_most_similar_are_chosen() -> None:
    seen = tokens()
    chosen = most_similar(seen, neighbourhood(SIDE, SIDE, wraparound=False), 3)
    for image in range(2):
        for patch in range(SIDE * SIDE):
            around = neighbourhood(SIDE, SIDE, wraparound=False)
            candidates = around.patch[patch][around.valid[patch]]
            similarity = torch.cosine_similarity(seen[image, patch][None], seen[image, candidates])
            expected = candidates[similarity.topk(3).indices]
            assert chosen.patch[image, patch].tolist() == expected.tolist()
            assert chosen.valid[image, patch].all()


def test_corners_have_three_neighbours_and_the_fourth_counts_nothing() -> None:
    chosen = most_similar(tokens(), neighbourhood(SIDE, SIDE, wraparound=False), 4)
    assert chosen.valid[:, 0].sum(dim=1).tolist() == [3, 3]
    module = head().aggregation
    three = Neighbours(chosen.patch[:, :1, :3], chosen.valid[:, :1, :3])
    torch.testing.assert_close(
        module(tokens(), Neighbours(chosen.patch[:, :1], chosen.valid[:, :1])), module(tokens(), three)
    )


def test_a_patchs_target_ignores_the_patch_itself() -> None:
    seen = tokens()
    module, chosen = head().aggregation, most_similar(seen, neighbourhood(SIDE, SIDE, wraparound=False), 4)
    before = module(seen, chosen)
    other = seen.clone()
    other[:, 12] = torch.arange(8) ** 2
    after = module(other, chosen)
    changed = (before - after).abs().amax(dim=2) > 1e-9
    assert not changed[:, 12].any()
    assert torch.equal(changed, (chosen.patch == 12).any(dim=2))


def test_a_group_of_all_patches_is_the_image() -> None:
    module, seen = head().aggregation, tokens()
    everything = torch.arange(SIDE * SIDE).expand(2, 1, -1)
    grouped = module(seen, Neighbours(everything, torch.ones_like(everything, dtype=torch.bool)))
    torch.testing.assert_close(grouped, module(seen))


def test_the_student_normalises_patches_and_the_teacher_aggregates_them() -> None:
    student, seen = head(teacher=False), tokens()
    teacher = copy.deepcopy(student)
    teacher.become_teacher()
    made, targets = student(seen), teacher(seen)
    torch.testing.assert_close(made.cls, targets.cls)
    torch.testing.assert_close(made.patches, student.patch_head(student.aggregation.norm(seen)))
    assert not torch.allclose(made.patches, targets.patches)
    assert made.patches.shape == (2, 25, 10)


def test_perceptrons_are_as_wide_as_asked() -> None:
    for ratio, hidden in ((4.0, 48), (1.5, 18)):
        block = SelfPatchHeadSpec(SMALL, SMALL, head_channels=6, mlp_ratio=ratio).build(12).aggregation.blocks[0]
        assert (block.mlp.fc1.out_features, block.mlp.fc2.in_features) == (hidden, hidden)


def test_linear_layers_start_as_wide_as_asked() -> None:
    for std in (0.02, 0.1):
        block = SelfPatchHeadSpec(SMALL, SMALL, head_channels=32, init_std=std).build(64).aggregation.blocks[0]
        assert block.mlp.fc1.weight.std().item() == pytest.approx(std, rel=0.05)
        assert block.attn.v.weight.std().item() == pytest.approx(std, rel=0.1)


def test_neighbours_on_a_grid_that_is_not_square_are_those_of_its_transpose() -> None:
    rows, columns = 2, 3
    around, turned = (neighbourhood(*grid, wraparound=False) for grid in ((rows, columns), (columns, rows)))
    for row in range(rows):
        for column in range(columns):
            near = around.patch[row * columns + column][around.valid[row * columns + column]]
            other = turned.patch[column * rows + row][turned.valid[column * rows + row]]
            places = {(int(one) // columns, int(one) % columns) for one in near}
            assert places == {(int(one) % rows, int(one) // rows) for one in other}
            assert all(max(abs(y - row), abs(x - column)) == 1 for y, x in places)
            assert len(places) == (5 if column == 1 else 3)


def test_the_teacher_knows_the_grids_of_views_that_are_not_square() -> None:
    assert grid_of(6, ((2, 3), (4, 6))) == (2, 3)
    assert grid_of(9) == (3, 3)
    with pytest.raises(DovetailError, match="cannot distinguish views of 2x8 and 4x4 patches"):
        SelfPatchHeadSpec(grids=((2, 8), (4, 4)))


def test_mistakes_are_told() -> None:
    with pytest.raises(DovetailError, match="neighbours is 9; it must be from 1 to 8"):
        SelfPatchHeadSpec(neighbours=9)
    with pytest.raises(DovetailError, match="square views, got 24 patches"):
        head()(tokens()[:, :24])
    with pytest.raises(DovetailError, match="head_channels 64 does not divide 48"):
        SelfPatchHeadSpec().build(48)


def test_neighbours_are_told_apart_under_autocast() -> None:
    """Tokens that are nearly alike have cosines within a step of bfloat16 of each other."""
    around, seen = neighbourhood(SIDE, SIDE, wraparound=False), 1 + 0.05 * tokens().float()
    chosen = most_similar(seen, around, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(most_similar(seen, around, 4).patch, chosen.patch)
