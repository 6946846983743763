"""DeCon over SlotCon, run as the learner runs it: the recipe's terms and weights on stored features."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from dovetail.networks.network import Network
from dovetail.objectives.slots import SlotObjective, SlotSpec
from dovetail.recipe import Recipe, Tap, Term
from dovetail.recipes.table import build
from dovetail.schedules import Moment, value_at
from dovetail.train.learner import Learner
from dovetail.train.reference import build_learner
from dovetail.views.view import View
from tests.golden.check_slotcon import head_weights
from tests.golden.vectors import Comparison, Golden, gradients, load, use_eps

START = Moment(0, 1, 1)


class Stored(Network):
    """Answers each view, told apart by its index in `source_px`, with stored features."""

    def __init__(self, taps: dict[str, Tap], features: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.taps, self.features = taps, features
        self.model, self.encoder_prefix, self.decoder_prefixes, self.constructor = nn.Module(), "", (), ""

    def forward(self, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        return {tap: self.features[int(view.source_px[0, 0])][tap] for tap in taps}

    def prune(self, taps: Collection[str]) -> None:
        """Features have no parameters."""


def check(golden: Golden) -> Iterator[Comparison]:
    for variant in ("single_level", "multi_level"):
        for one in check_variant(golden, variant):
            yield replace(one, what=f"{variant}.{one.what}")


def check_variant(golden: Golden, variant: str) -> Iterator[Comparison]:
    levels = levels_of(golden.under(f"{variant}.expected"))
    learner = learner_for(golden, levels)
    loss = learner(stored_views(golden), START)
    loss.total.backward()
    learner.update()
    yield Comparison("loss", loss.total, golden[f"{variant}.expected.loss"])
    yield Comparison("encoder.loss", loss.parts["encoder/loss"], golden[f"{variant}.expected.encoder.loss"])
    decoder = torch.stack([loss.parts[f"decoder_{level}/loss"] for level in levels]).mean()
    yield Comparison("decoder.loss", decoder, golden[f"{variant}.expected.decoder.loss"])
    for term in learner.recipe.terms:
        yield from compare_term(golden, variant, learner, term, loss.parts)


def levels_of(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the decoder's levels that have tensors, finest first."""
    return tuple(sorted({name.split(".")[1] for name in tensors if name.startswith("decoder.p")}))


def compare_term(
    golden: Golden, variant: str, learner: Learner, term: Term, parts: dict[str, Tensor]
) -> Iterator[Comparison]:
    stored = "encoder" if term.name == "encoder" else f"decoder.{term.tap}"
    weight = golden.config["w_enc" if term.name == "encoder" else "w_dec"]
    expected = golden.under(f"{variant}.expected.{stored}")
    # With several levels the official code averages over them what it stores for each.
    yield Comparison(f"{stored}.group", weight * parts[f"{term.name}/group"], expected["weighted_group_loss"])
    yield Comparison(f"{stored}.slot", (1 - weight) * parts[f"{term.name}/slot"], expected["weighted_slot_loss"])
    objective = learner.objectives[term.name]
    assert isinstance(objective, SlotObjective)
    yield Comparison(f"{stored}.centre", objective.centre, expected["new_center"])
    grads = golden.under(f"{variant}.expected.grad.{stored}.student")
    for index, features in enumerate(learner.student.network.features, 1):
        yield Comparison(f"{stored}.grad view{index}", features[term.tap].grad, grads[f"view{index}.features"])
    named = {"prototypes.weight" if name == "prototypes" else name: value for name, value in grads.items()}
    yield from gradients(learner.student.heads[term.name], stored, named)
    predictor = {name.removeprefix("predictor."): value for name, value in grads.items() if "predictor." in name}
    yield from gradients(objective.predictor, f"{stored}.predictor", predictor)


def learner_for(golden: Golden, levels: tuple[str, ...]) -> Learner:
    """Return a learner of the recipe with the stored weights, centres and features."""
    config = golden.config
    taps = {"c5": Tap(config["C_enc"], 32, "map", "encoder")}
    taps |= {level: Tap(config["C_dec"], 2 ** int(level[1]), "map", "decoder") for level in levels_of(golden.tensors)}
    names = {"encoder": "c5"} | {f"decoder.{level}": level for level in levels}
    network = Stored(taps, stored_features(golden, names, "student", True))
    learner = build_learner(recipe_for(golden, taps, levels), network)
    assert learner.teacher is not None
    learner.double()
    use_eps(learner, batch_norm=config["bn_eps"])
    learner.teacher.network.features = stored_features(golden, names, "teacher", False)
    for stored, tap in names.items():
        term = next(one.name for one in learner.recipe.terms if one.tap == tap)
        load(learner.student.heads[term], head_weights(golden.under(f"{stored}.student")))
        load(learner.teacher.heads[term], head_weights(golden.under(f"{stored}.teacher")))
        objective = learner.objectives[term]
        assert isinstance(objective, SlotObjective)
        load(objective.predictor, golden.under(f"{stored}.student.predictor"))
        objective.centre.copy_(golden[f"{stored}.center"])
    return learner


def recipe_for(golden: Golden, taps: dict[str, Tap], levels: tuple[str, ...]) -> Recipe:
    """Return the recipe with the stored sizes and temperatures.

    Our recipe of alpha 0 has no term on the encoder, whose loss is stored nevertheless: there it weighs 0.
    """
    config = golden.config
    options = {
        "levels": ",".join(levels),
        "alpha": config["alpha"] or 0.5,
        "hidden": config["hid"],
        "dim": config["out"],
        "prototypes": config["K_enc"],
        "decoder_prototypes": config["K_dec"],
        "student_temperature": config["student_temp"],
        "teacher_temperature": config["teacher_temp"],
        "contrast_temperature": config["contrast_temp"],
        "reference_disjoint_crops": True,
        "lateral_dropout": 0.0,
    }
    recipe = build("decon-sl", taps, options)
    terms = [with_constants(term, config) for term in recipe.terms]
    if config["alpha"] == 0:
        terms = [
            replace(one, weight=0.0 if one.name == "encoder" else value_at(one.weight, START) * 2) for one in terms
        ]
    return recipe.with_terms(*terms)


def with_constants(term: Term, config: dict[str, float]) -> Term:
    """Return the term with the stored constants that are no options, and without recomputation."""
    assert isinstance(term.objective, SlotSpec)
    objective = replace(
        term.objective,
        group_weight=config["w_enc" if term.name == "encoder" else "w_dec"],
        grouping_temperature=config["grouping_temp"],
        grouping_eps=config["grouping_eps"],
        centre_momentum=config["center_momentum"],
    )
    return replace(term, objective=objective)


def stored_features(golden: Golden, names: dict[str, str], branch: str, grad: bool) -> list[dict[str, Tensor]]:
    """Return both views' features by tap."""
    return [
        {
            tap: golden[f"{stored}.{branch}.view{view}.features"].clone().requires_grad_(grad)
            for stored, tap in names.items()
        }
        for view in (1, 2)
    ]


def stored_views(golden: Golden) -> list[View]:
    """Return two views whose overlap boxes are the stored ones: the first crop is the whole photograph's frame."""
    coords, flips = [golden[f"view{view}.coords"] for view in (1, 2)], [golden[f"view{v}.flipped"] for v in (1, 2)]
    own = [unflip(box, flipped) for box, flipped in zip(coords, flips, strict=True)]
    size = (own[0][:, 2:] - own[0][:, :2]) / (own[1][:, 2:] - own[1][:, :2])
    corner = own[0][:, :2] - own[1][:, :2] * size
    boxes = [torch.tensor([[0.0, 0.0, 1.0, 1.0]]).double().repeat(len(size), 1), torch.cat([corner, corner + size], 1)]
    return [
        View(torch.zeros(len(size), 1, 1, 1), box, flipped, torch.full((len(size), 2), float(index)))
        for index, (box, flipped) in enumerate(zip(boxes, flips, strict=True))
    ]


def unflip(box: Tensor, flipped: Tensor) -> Tensor:
    """Return the box [B, 4] in the crop's frame before flipping."""
    x1, y1, x2, y2 = box.unbind(1)
    return torch.stack([torch.where(flipped, 1 - x2, x1), y1, torch.where(flipped, 1 - x1, x2), y2], dim=1)
