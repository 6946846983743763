"""PQCL over iBOT: its laws, and an independent reference for its query term and its positions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.networks.random_start import check_positions, fix_positions
from dovetail.networks.vit import ViTNetwork, build_vit
from dovetail.networks.vit_embed import embed, query_cells, sincos_grid, sincos_positions
from dovetail.recipe import QueryRule
from dovetail.recipes.query_context import pqcl
from dovetail.recipes.query_terms import adclr
from dovetail.recipes.table import build
from dovetail.recipes.tokens import ibot
from dovetail.train.learner import Learner
from dovetail.views.view import View
from tests.networks.vits import PATCH, SIDE, tiny_vit
from tests.recipes.test_tokens import SMALL, check_next_loss_is_bit_equal, one_step
from tests.tiny import START, make_views

CELLS = SIDE // PATCH  # of a view of the tiny ViT
QUERY = {"query_crops": 2, "query_size": 3 * PATCH}
G = 9  # tokens of a query
OPTIONS = SMALL | QUERY | {"local_crops": 0}


def learner(*, drop_path: float = 0.0, **options: Any) -> Learner:
    """Return a learner on a tiny ViT with fixed positions, in training mode."""
    torch.manual_seed(0)
    network = build_vit(tiny_vit(drop_path_rate=drop_path))
    recipe = pqcl(network.taps, **OPTIONS | options)
    if recipe.query_rule.positions == "sincos":
        fix_positions(network)
    made = Learner(recipe, network).train()
    with torch.no_grad():  # zeros at the start, where much would hold by itself
        made.student.network.mask_token.normal_(generator=torch.Generator().manual_seed(5))  # type: ignore[operator]
    return made


def vit_network(made: Learner) -> ViTNetwork:
    network = made.student.network
    assert isinstance(network, ViTNetwork)
    return network


def embedded(made: Learner, view: View) -> Tensor:
    """Return the student's query tokens before the first block: [B, S g, C]."""
    network = vit_network(made)
    queries = embed(
        network.vit, view, mask_token=network.mask_token, with_queries=True, rule=network.rules.query_rule
    ).queries
    assert queries is not None
    return queries


def plain_position(x: float, y: float, channels: int) -> list[float]:
    """The sine-cosine position of one place, number by number."""
    quarter = channels // 4
    rates = [1 / 10000 ** (index / quarter) for index in range(quarter)]
    parts = [[function(place * rate) for rate in rates] for place in (x, y) for function in (math.sin, math.cos)]
    return [number for part in parts for number in part]


def plain_cells(view: View, image: int, query: int, side: int) -> list[tuple[float, float]]:
    """The places of a query's patches in the view, by pixels of the image."""
    x1, y1, x2, y2 = view.box[image].tolist()
    left, top, right, bottom = view.query_box[image, query].tolist()  # type: ignore[index]
    found = []
    for row in range(side):
        for column in range(side):
            x = left + (column + 0.5) * (right - left) / side
            y = top + (row + 0.5) * (bottom - top) / side
            if view.flipped[image]:
                x = x1 + x2 - x
            found.append(((x - x1) / ((x2 - x1) / CELLS) - 0.5, (y - y1) / ((y2 - y1) / CELLS) - 0.5))
    return found


def test_positions_are_those_of_a_plain_reference() -> None:
    made = learner().double()
    view = make_views(made.recipe.views, dtype=torch.float64)[0]
    view = replace(view, box=view.box.double(), query_box=view.query_box.double())  # type: ignore[union-attr]
    assert view.flipped.any()
    assert not view.flipped.all()
    network = vit_network(made)
    expected = torch.tensor(
        [
            [plain_position(x, y, 48) for query in range(2) for x, y in plain_cells(view, image, query, 3)]
            for image in range(len(view.pixels))
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(embedded(made, view), network.mask_token + expected, rtol=1e-12, atol=1e-12)


def test_a_query_that_is_the_view_has_the_positions_of_its_patches() -> None:
    whole = torch.tensor([[0.1, 0.2, 0.6, 0.9]])
    made = learner(query_size=SIDE)
    view = make_views(made.recipe.views, batch=1)[0]
    view = replace(view, box=whole, query_box=whole[:, None].repeat(1, 2, 1), flipped=torch.tensor([False]))
    grid = sincos_grid(vit_network(made).vit)[0, 1:]
    for found in embedded(made, view)[0].chunk(2):
        torch.testing.assert_close(found - vit_network(made).mask_token, grid, rtol=1e-4, atol=1e-5)


def test_reference_positions_are_corners_that_no_flip_mirrors() -> None:
    """As PQCL's augmentation counts: (crop's edge - view's edge) / view's cell + index * crop's cell / view's cell."""
    made = learner()
    view = make_views(made.recipe.views)[0]
    found = query_cells(view, 3, CELLS, CELLS, reference=True).reshape(-1, 2, 3, 3, 2)
    for image in range(len(view.pixels)):
        left, top, right, bottom = view.query_box[image, 1].tolist()  # type: ignore[index]
        x1, y1, x2, y2 = view.box[image].tolist()
        for row in range(3):
            for column in range(3):
                x = (left - x1) / ((x2 - x1) / CELLS) + column * ((right - left) / 3) / ((x2 - x1) / CELLS)
                y = (top - y1) / ((y2 - y1) / CELLS) + row * ((bottom - top) / 3) / ((y2 - y1) / CELLS)
                torch.testing.assert_close(found[image, 1, row, column], torch.tensor([x, y]), rtol=1e-4, atol=1e-5)
    other = replace(view, flipped=~view.flipped)
    assert torch.equal(query_cells(other, 3, CELLS, CELLS, reference=True), found.flatten(1, 3))
    assert learner(reference_query_positions=True).student.network.rules.query_rule.reference_positions


def test_a_shifted_crop_shifts_the_embedding_and_nothing_else() -> None:
    made = learner()
    view = make_views(made.recipe.views)[0]
    view = replace(view, flipped=torch.zeros_like(view.flipped))
    assert view.query_box is not None
    cell = (view.box[:, 2] - view.box[:, 0]) / CELLS  # [B], width of a cell in the image
    moved = view.query_box.clone()
    moved[:, 0, 0::2] += cell[:, None]  # the first crop, one cell to the right
    shifted = embedded(made, replace(view, query_box=moved))
    before, after = query_cells(view, 3, CELLS, CELLS), query_cells(replace(view, query_box=moved), 3, CELLS, CELLS)
    torch.testing.assert_close(
        after[:, :G] - before[:, :G], torch.tensor([1.0, 0.0]).expand(4, G, 2), rtol=0, atol=1e-4
    )
    change = sincos_positions(after, 48) - sincos_positions(before, 48)
    plain = embedded(made, view)
    torch.testing.assert_close(shifted - plain, change, rtol=1e-4, atol=1e-5)
    assert torch.equal(shifted[:, G:], plain[:, G:])
    assert not torch.allclose(shifted[:, :G], plain[:, :G], atol=1e-2)


def test_the_students_query_tokens_have_no_pixels_and_the_teachers_targets_have() -> None:
    made = learner()
    views = make_views(made.recipe.views)
    others = [replace(view, queries=torch.randn_like(view.queries)) for view in views]  # type: ignore[arg-type]
    assert torch.equal(embedded(made, views[0]), embedded(made, others[0]))
    for name, value in made.student(views).items():
        assert all(torch.equal(one, other) for one, other in zip(value, made.student(others)[name], strict=True))
    first, second = made.teacher_outputs(views), made.teacher_outputs(others)
    assert torch.equal(first["cls"][0], second["cls"][0])
    assert not torch.allclose(first["queries"][0], second["queries"][0], atol=1e-3)


def test_the_teacher_encodes_a_crop_by_itself_as_an_image() -> None:
    made = learner()
    views = make_views(made.recipe.views)
    assert made.teacher is not None
    network = made.teacher.network
    crops = views[0].queries
    assert crops is not None
    for query in range(2):
        image = replace(views[0], pixels=crops[:, query], mask=None, masked=None, queries=None, query_box=None)
        patches = network(image, ["patches"])["patches"]  # [B, 9, C]
        expected = made.teacher.heads["cls"](patches)
        found = made.teacher_outputs(views)["queries"]
        assert len(found) == 2
        for logits in found:
            torch.testing.assert_close(logits[:, query * G : (query + 1) * G], expected)


def test_the_query_term_is_that_of_a_plain_reference() -> None:
    made = learner(teacher_query_temperature=0.06, warmup_temperature_epochs=0, query_weight=0.7).double().eval()
    objective = made.objectives["queries"]
    objective.centre.copy_(torch.linspace(-0.5, 0.5, 12))  # type: ignore[union-attr]
    views = make_views(made.recipe.views, dtype=torch.float64)
    student, teacher = made.student(views)["queries"], made.teacher_outputs(views)["queries"][0]
    centre = objective.centre.tolist()  # type: ignore[union-attr]
    total, count = 0.0, 0
    for logits in student:
        for image in range(4):
            for token in range(2 * G):
                aims = [
                    (value - middle) / 0.06
                    for value, middle in zip(teacher[image, token].tolist(), centre, strict=True)
                ]
                guesses = [value / 0.1 for value in logits[image, token].tolist()]
                norm = math.log(math.fsum(math.exp(value) for value in guesses))
                weights = [math.exp(value - max(aims)) for value in aims]
                mass = math.fsum(weights)
                total -= math.fsum(w / mass * (guess - norm) for w, guess in zip(weights, guesses, strict=True))
                count += 1
    loss = made(views, START)
    assert loss.parts["queries/loss"].item() == pytest.approx(total / count, rel=1e-12)
    others = loss.parts["cls/loss"] + loss.parts["patches/loss"]
    torch.testing.assert_close(loss.total, others + 0.7 * loss.parts["queries/loss"])


def test_queries_have_a_centre_of_their_own() -> None:
    made = learner(query_centre_momentum=0.6)
    views = make_views(made.recipe.views)
    made(views, START)
    target = made.teacher_outputs(views)["queries"][0]
    made.update()
    torch.testing.assert_close(made.objectives["queries"].centre, 0.4 * target.mean(dim=1).mean(dim=0))
    assert not torch.allclose(made.objectives["queries"].centre, made.objectives["cls"].centre, atol=1e-4)


def test_the_raw_stream_is_ibots() -> None:
    made = learner(drop_path=0.3)
    base = ibot(vit_network(made).taps, **SMALL | {"local_crops": 0})
    network = copy.deepcopy(vit_network(made))
    torch.manual_seed(0)
    plain = Learner(base, network).train()
    plain.student.heads.load_state_dict(made.student.heads.state_dict())
    views = make_views(made.recipe.views)
    outputs = []
    for one in (made, plain):
        torch.manual_seed(9)
        outputs.append(one.student([replace(view, queries=view.queries) for view in views]))
    for name in ("cls", "patches"):
        assert all(torch.equal(*pair) for pair in zip(outputs[0][name], outputs[1][name], strict=True))


def test_permuting_queries_permutes_their_tokens() -> None:
    made = learner().eval()
    views = make_views(made.recipe.views)
    swapped = [
        replace(view, queries=view.queries.flip(1), query_box=view.query_box.flip(1))  # type: ignore[union-attr]
        for view in views
    ]
    for found, expected in (
        (made.student(swapped)["queries"], made.student(views)["queries"]),
        (made.teacher_outputs(swapped)["queries"], made.teacher_outputs(views)["queries"]),
    ):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, torch.cat([other[:, G:], other[:, :G]], dim=1))


@pytest.mark.parametrize("attention", ["unidirectional", "query_to_query"])
def test_no_gradient_runs_between_queries_unless_asked_for(attention: Any) -> None:
    made = learner(query_attention=attention).eval()
    network = vit_network(made)
    view = make_views(made.recipe.views)[0]
    raw, queries, rotations = embed(
        network.vit, view, mask_token=network.mask_token, with_queries=True, rule=network.rules.query_rule
    )
    queries = queries.detach().requires_grad_()  # type: ignore[union-attr]
    tokens: Tensor = queries
    for index, block in enumerate(network.vit.blocks):
        raw, tokens = network.through_block(block, raw, tokens, rotations[index])
    (gradient,) = torch.autograd.grad(tokens[:, G:].square().sum(), queries, retain_graph=True)
    assert bool((gradient[:, :G] == 0).all()) is (attention == "unidirectional")
    assert (gradient[:, G:] != 0).any()
    # Tokens of one query do see each other.
    (gradient,) = torch.autograd.grad(tokens[:, 0].square().sum(), queries)
    assert (gradient[:, 1:G] != 0).any()


def test_fixed_positions_do_not_learn_and_all_else_does() -> None:
    made = learner()
    before = vit_network(made).vit.pos_embed.clone()
    made(make_views(made.recipe.views), START).total.backward()
    trained = {name: parameter for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    assert "student.network.mask_token" in trained
    assert not any(name.endswith("pos_embed") for name in trained)
    one_step(made)
    assert torch.equal(vit_network(made).vit.pos_embed, before)
    assert torch.equal(made.exported.vit.pos_embed, before)  # type: ignore[union-attr]
    assert (before[0, 0] == 0).all()  # the class token's
    check_positions(vit_network(made))


def test_learned_positions_are_the_models_own_at_the_tokens_places() -> None:
    made = learner(query_positions="learned", query_size=SIDE)
    network = vit_network(made)
    assert network.vit.pos_embed.requires_grad
    whole = torch.tensor([[0.1, 0.2, 0.6, 0.9]])
    view = make_views(made.recipe.views, batch=1)[0]
    view = replace(view, box=whole, query_box=whole[:, None].repeat(1, 2, 1), flipped=torch.tensor([True]))
    grid = network.vit.pos_embed[0, 1:].reshape(CELLS, CELLS, -1).flip(1).flatten(0, 1)  # mirrored
    for found in embedded(made, view)[0].chunk(2):
        torch.testing.assert_close(found - network.mask_token, grid, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"shared_head": False, "patch_prototypes": 7}, {"local_crops": 2}])
def test_saved_and_loaded_the_next_loss_is_bit_equal(options: dict[str, Any]) -> None:
    check_next_loss_is_bit_equal(learner(drop_path=0.2, **options), learner(drop_path=0.2, **options))


def test_weights_that_learned_their_positions_are_refused() -> None:
    network = build_vit(tiny_vit())
    with pytest.raises(DovetailError, match=r"weights have learned ones; add --recipe\.query_positions learned"):
        check_positions(network)
    fix_positions(network)
    check_positions(network)
    assert torch.equal(network.vit.pos_embed, sincos_grid(network.vit))
    with pytest.raises(DovetailError, match="no position embedding"):
        check_positions(build_vit(tiny_vit(pos_embed="none")))


def test_wrong_numbers_and_models_are_told() -> None:
    taps = build_vit(tiny_vit()).taps
    for options, words in (
        ({"query_crops": 0}, "query_crops is 0; .* 'ibot'"),
        ({"query_size": 3 * PATCH + 1}, f"query_size 25 .* patch size {PATCH}; set it to 24"),
        ({"query_size": 0}, "set it to 8"),
    ):
        with pytest.raises(DovetailError, match=words):
            pqcl(taps, **OPTIONS | options)
    without = {name: tap for name, tap in taps.items() if name != "queries"}
    with pytest.raises(DovetailError, match="needs a ViT that supports query tokens"):
        pqcl(without, **OPTIONS)
    odd = {name: replace(tap, channels=50) for name, tap in taps.items()}
    with pytest.raises(DovetailError, match="set query_positions to 'learned'"):
        pqcl(odd, **OPTIONS)
    assert pqcl(odd, **OPTIONS | {"query_positions": "learned"}).query_rule.positions == "learned"
    with pytest.raises(DovetailError, match="multiple of 4 channels"):
        sincos_positions(torch.zeros(1, 2), 50)


def test_what_composes_and_what_does_not() -> None:
    taps = build_vit(tiny_vit()).taps
    with pytest.raises(DovetailError, match="cannot add query tokens to 'pqcl'"):
        adclr(pqcl(taps, **OPTIONS), taps)
    with pytest.raises(DovetailError, match="'pqcl'"):
        build("adclr-pqcl", taps, {"query_size": PATCH})
    assert QueryRule().content == "pixels"
