"""The losses of an independent library, lightly: contrast, regression, decorrelation, distillation, matched cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.heads.prototypes import PrototypeHeadSpec
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.contrast import NTXentSpec, QueueContrastSpec
from dovetail.objectives.decorrelate import BarlowSpec, VICRegSpec
from dovetail.objectives.dense import correspondences, info_nce, take_cells
from dovetail.objectives.distill import DistillSpec
from dovetail.objectives.objective import Loss, Objective
from dovetail.objectives.patches import MaskedPatchSpec
from dovetail.objectives.regress import regress
from dovetail.schedules import Moment
from tests.golden.check_dino import empty_view, views_of
from tests.golden.vectors import Comparison, Golden, load

NOW = Moment(0, 1, 1)


def check(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    head = VectorHeadSpec(dim=config["D"])
    for name, spec in {
        "ntxent_in_batch": NTXentSpec(config["ntxent_temperature"]),
        "barlow_twins": BarlowSpec(config["barlow_lambda"]),
        "vicreg": vicreg_spec(config["vicreg"]),
        "vicreg_collapsed": vicreg_spec(config["vicreg"]),
    }.items():
        yield from check_views(golden, name, spec.build(head))
    yield from check_memory_bank(golden)
    yield from check_cosines(golden)
    yield from check_distill(golden)
    yield from check_masked_patches(golden)
    yield from check_matched_cells(golden)


def vicreg_spec(constants: Mapping[str, float]) -> VICRegSpec:
    """Return VICReg's loss as lightly weighs it: the variance term is the mean over views."""
    return VICRegSpec(
        constants["invariance"], constants["variance"], constants["covariance"], 0.5, eps=constants["eps"]
    )


def finish(case: str, loss: Loss, tensors: dict[str, Tensor], inputs: dict[str, Tensor]) -> Iterator[Comparison]:
    """Compare the loss, and the gradients at `inputs`."""
    loss.total.backward()
    yield Comparison(f"{case} loss", loss.total, tensors["expected.loss"])
    for name, value in inputs.items():
        assert value.grad is not None
        yield Comparison(f"{case} grad {name}", value.grad, tensors[f"expected.grad.{name}"])


def leaves(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Return copies of the named tensors that take gradients."""
    return {name: tensors[name].clone().requires_grad_() for name in names}


def check_views(golden: Golden, case: str, objective: Objective) -> Iterator[Comparison]:
    """A loss of two views."""
    tensors = golden.under(case)
    inputs = leaves(tensors, "view1", "view2")
    yield from finish(case, objective(list(inputs.values()), [], [], NOW), tensors, inputs)


def check_memory_bank(golden: Golden) -> Iterator[Comparison]:
    """Queries against keys and a bank that drops what does not fit at its end."""
    case, config = "ntxent_memory_bank", golden.config
    tensors = golden.under(case)
    spec = QueueContrastSpec(config["ntxent_temperature"], config["bank"], reference_dropped_surplus=True)
    objective = spec.build(VectorHeadSpec(dim=config["D"]))
    state = {"queues.0.vectors": tensors["memory_bank"].T, "queues.0.pointer": tensors["memory_bank_pointer"]}
    load(objective, state)
    inputs = leaves(tensors, "query")
    outputs = [inputs["query"], inputs["query"].detach()], [tensors["key"], tensors["key"]]
    yield from finish(case, objective(*outputs, [], NOW), tensors, inputs)
    objective.update(*outputs)
    (queue,) = (queue for _, queue in objective.queue_of_view())
    yield Comparison(f"{case} new bank", queue.vectors.T, tensors["expected.new_memory_bank"])
    yield Comparison(f"{case} new pointer", queue.pointer, tensors["expected.new_pointer"])


def check_cosines(golden: Golden) -> Iterator[Comparison]:
    """One negative cosine, and the mean of two."""
    case = "negative_cosine"
    tensors = golden.under(case)
    inputs = leaves(tensors, "prediction")
    # Two views of which both pairs are the same: the mean is the one cosine, its gradient that of both together.
    pair, target = [inputs["prediction"]] * 2, [tensors["target"]] * 2
    yield from finish(case, regress(pair, target, convention="negative_cosine"), tensors, inputs)
    case = "simsiam_symmetric"
    tensors = golden.under(case)
    inputs = leaves(tensors, "prediction1", "prediction2")
    targets = [tensors["target1"], tensors["target2"]]
    yield from finish(case, regress(list(inputs.values()), targets, convention="negative_cosine"), tensors, inputs)


def check_distill(golden: Golden) -> Iterator[Comparison]:
    """DINO's loss and centre; the first views of the student are the teacher's."""
    case, constants = "dino", golden.config["dino"]
    tensors = golden.under(case)
    inputs = leaves(tensors, "student_logits")
    logits, targets = list(inputs["student_logits"]), list(tensors["teacher_logits"])
    spec = DistillSpec(constants["student_temp"], constants["teacher_temp"], constants["center_momentum"])
    objective = spec.build(PrototypeHeadSpec(prototypes=len(tensors["center"]))).double()
    objective.centre.copy_(tensors["center"])
    views = views_of(len(targets[0]), len(logits) - len(targets))
    yield from finish(case, objective(logits, targets, views, NOW), tensors, inputs)
    objective.update(logits, targets)
    yield Comparison(f"{case} new centre", objective.centre, tensors["expected.new_center"])


def check_masked_patches(golden: Golden) -> Iterator[Comparison]:
    """iBOT's loss of masked patches; lightly's centre takes these alone, so the update is given no others."""
    case, constants = "ibot_patch_masked_only", golden.config["ibot"]
    tensors = golden.under(case)
    inputs = leaves(tensors, "student_masked_logits")
    mask, prototypes = tensors["mask"].flatten(1), len(tensors["center"])

    def on_grid(rows: Tensor) -> Tensor:
        return torch.zeros(*mask.shape, prototypes, dtype=rows.dtype).masked_scatter(mask[:, :, None], rows)

    spec = MaskedPatchSpec(constants["student_temp"], constants["teacher_temp"], constants["center_momentum"])
    objective = spec.build(PrototypeHeadSpec(prototypes=prototypes)).double()
    objective.centre.copy_(tensors["center"])
    logits, targets = on_grid(inputs["student_masked_logits"]), on_grid(tensors["teacher_masked_logits"])
    loss = objective([logits], [targets], [empty_view(len(mask), "global", tensors["mask"])], NOW)
    yield from finish(case, loss, tensors, inputs)
    objective.update([], [tensors["teacher_masked_logits"]])
    yield Comparison(f"{case} new centre", objective.centre, tensors["expected.new_center"])


def check_matched_cells(golden: Golden) -> Iterator[Comparison]:
    """DenseCL's dense term: matches on the backbone's cells, contrast of the head's against a bank."""
    case, config = "densecl_dense_term", golden.config
    tensors = golden.under(case)

    def as_map(name: str) -> Tensor:
        return tensors[name].transpose(1, 2).unflatten(2, (config["grid"], config["grid"]))

    index = correspondences(as_map("query_backbone"), as_map("key_backbone"))
    inputs = leaves(tensors, "query_dense")
    query = F.normalize(inputs["query_dense"], dim=2)
    key = F.normalize(take_cells(as_map("key_dense"), index), dim=2)
    bank = tensors["memory_bank"].T
    total = info_nce(query.flatten(0, 1), key.flatten(0, 1), bank, temperature=config["t"], at_once=2**20)
    yield Comparison(f"{case} matches", index, tensors["expected.correspondence_index"])
    yield from finish(case, Loss(total, {"dense": torch.zeros(())}), tensors, inputs)
