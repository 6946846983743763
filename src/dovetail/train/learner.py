"""The learner: a student branch, a teacher branch, and the weighted sum of a recipe's terms.

A branch is a network and its heads. The teacher is a deep copy of the student branch. One exponential moving average
per optimiser step updates all of it, including the heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dovetail.heads.base import TeacherAware
from dovetail.networks.decoder_padding import decoder_padded
from dovetail.networks.layer_decay import layer_scales
from dovetail.networks.network import Network, at_points
from dovetail.objectives.objective import Loss, Objective
from dovetail.recipe import Recipe, SameHead, Term
from dovetail.schedules import Moment, value_at
from dovetail.train.cells import chosen_cells, view_of_cells
from dovetail.train.phases import phase
from dovetail.train.recompute import recomputed
from dovetail.train.shuffle import shuffled_across_ranks
from dovetail.train.teacher import average_into
from dovetail.views.view import Role, View

Outputs = dict[str, list[Any]]


class Branch(nn.Module):
    """A network and the heads of a recipe's terms. Maps views to the head outputs of each term, one per view.

    Attributes:
        teaches: Whether this is the teacher, which reads the target of a term if it has one.
    """

    def __init__(self, recipe: Recipe, network: Network) -> None:
        super().__init__()
        self.recipe = recipe
        self.teaches = False
        self.network = network
        self.heads = nn.ModuleDict(
            {
                term.name: term.head.build(network.taps[term.tap].channels)
                for term in recipe.terms
                if not isinstance(term.head, SameHead)
            }
        )

    def forward(self, views: Sequence[View]) -> Outputs:
        with decoder_padded(self.network, self.recipe.decoder_padding):
            taps = self.taps_of(views)
        outputs: Outputs = {}
        for term in self.recipe.terms:
            name, roles = self.reads(term)
            inputs = [
                chosen_cells(term.cells, at[name], view, self.network.taps[name]) if name == term.tap else at[name]
                for view, at in zip(views, taps, strict=True)
                if view.role in roles
            ]
            outputs[term.name] = self.apply_head(term, inputs)
        return outputs

    def taps_of(self, views: Sequence[View]) -> list[dict[str, Tensor]]:
        """Return every view's taps, from one forward pass per view or per size of view."""
        if self.recipe.forward_views == "per_view":
            return [self.network(view, self.needed(view)) if self.needed(view) else {} for view in views]
        taps: list[dict[str, Tensor]] = [{} for _ in views]
        for indices in same_kind([view_kind(view) for view in views]):
            if not self.needed(views[indices[0]]):
                continue
            joint = concatenate([views[index] for index in indices])
            answer = self.network(joint, self.needed(joint))
            for tap, value in answer.items():
                for index, part in zip(indices, value.chunk(len(indices)), strict=True):
                    taps[index][tap] = part
        return taps

    def needed(self, view: View) -> Collection[str]:
        """Return the taps that the terms read from this view, in the order of the terms.

        The order must be the same in all processes: it decides the order of the backward pass, whose collective
        operations would not match otherwise. The order of a set of names differs from process to process.
        """
        read = (self.reads(term) for term in self.recipe.terms)
        return list(dict.fromkeys(name for name, roles in read if view.role in roles))

    def reads(self, term: Term) -> tuple[str, tuple[Role, ...]]:
        """Return the name of the tap that this branch reads for a term, and the roles of the views."""
        if self.teaches and term.target is not None:
            return term.target.tap, term.target.roles
        return self.asked(term), term.roles

    def asked(self, term: Term) -> str:
        """Return the name of a term's tap, computed only at points if that is cheaper."""
        whole = any(other.tap == term.tap and other.cells.points is None for other in self.recipe.terms)
        return term.tap if whole or term.tap not in self.network.point_taps else at_points(term.tap)

    def apply_head(self, term: Term, inputs: list[Tensor]) -> list[Any]:
        """Return the head's output for each input; with "per_size", inputs of the same shape share a pass."""
        owner, output = (term.head.term, term.head.output) if isinstance(term.head, SameHead) else (term.name, "")
        head = self.heads[owner]
        run = recomputed(head) if term.checkpoint_head and torch.is_grad_enabled() else head
        run = partial(run, output=output) if output else run
        if self.recipe.forward_views == "per_view":
            return [run(value) for value in inputs]
        return apply_together(run, inputs)


class Learner(nn.Module):
    """All modules that a run trains and saves. The only module that is wrapped for distributed training.

    Usage: `loss = learner(views, moment)`, backward, `learner.update()` once per micro-batch, optimiser step,
    `learner.move_teacher(moment)` once per optimiser step, with the number of steps finished by then.
    """

    def __init__(self, recipe: Recipe, network: Network) -> None:
        super().__init__()
        recipe.check(network.taps)
        network = network.following(recipe.network_rules)
        # Targets have no gradient, so modules that only contribute to targets are not trained.
        network.prune({term.tap for term in recipe.terms})
        self.recipe = recipe
        self.student = Branch(recipe, network)
        self.objectives = nn.ModuleDict(
            {term.name: term.objective.build(recipe.head_of(term)) for term in recipe.terms}
        )
        self.teacher: Branch | None = None
        if recipe.teacher_momentum is not None:
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)
            self.teacher.teaches = True
            if not recipe.teacher_lateral_dropout:
                undropped = replace(recipe.network_rules, lateral_dropout=None)
                self.teacher.network = self.teacher.network.following(undropped)
            for module in self.teacher.modules():
                if isinstance(module, TeacherAware):
                    module.become_teacher()
        self._pending: list[tuple[Objective, list[Any], list[Any]]] = []

    def forward(self, views: Sequence[View], moment: Moment) -> Loss:
        """Return the weighted sum of the terms, and the raw parts of every term as "TERM/PART" (with "TERM/loss")."""
        with phase("student"):
            student = self.student_outputs(views)
        with phase("teacher"):
            teacher = self.teacher_outputs(views)
        with phase("losses"):
            return self.losses(views, moment, student, teacher)

    def losses(self, views: Sequence[View], moment: Moment, student: Outputs, teacher: Outputs) -> Loss:
        """Return the result of `forward` for the outputs of both branches."""
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        self._pending = []
        for term in self.recipe.terms:
            objective = self.objectives[term.name]
            seen = self.compared(term, views)
            loss: Loss = objective(student[term.name], teacher.get(term.name, []), seen, moment)
            weighted = loss.total * value_at(term.weight, moment)
            total = weighted if total is None else total + weighted
            parts |= {f"{term.name}/{part}": value.detach() for part, value in loss.parts.items()}
            parts[f"{term.name}/loss"] = loss.total.detach()
            self._pending.append((objective, student[term.name], teacher.get(term.name, [])))  # type: ignore[arg-type]
        assert total is not None  # a recipe has at least one term
        return Loss(total, parts)

    def compared(self, term: Term, views: Sequence[View]) -> list[View]:
        """Return the views for a term's objective: the student's, then the teacher's if the term has a target."""
        tap = self.student.network.taps[term.tap]
        seen = [view_of_cells(term.cells, view, tap) for view in views if view.role in term.roles]
        if term.target is None:
            return seen
        return seen + [replace(view, points=None) for view in views if view.role in term.target.roles]

    def student_outputs(self, views: Sequence[View]) -> Outputs:
        """Return the student's outputs; None replaces the second view if only the first is compared."""
        if not self.recipe.one_way:
            outputs: Outputs = self.student(views)
            return outputs
        return {name: [first, None] for name, (first,) in self.student(views[:1]).items()}

    @torch.no_grad()
    def teacher_outputs(self, views: Sequence[View]) -> Outputs:
        """Return the teacher's outputs for its views, without masks.

        None replaces the first of two views if only the second is compared.
        """
        if self.teacher is None:
            return {}
        seen = [view.without_mask() for view in views if view.role in self.recipe.teacher_views]
        run = partial(shuffled_across_ranks, self.teacher) if self.recipe.shuffle_batch_norm else self.teacher
        if self.recipe.one_way:
            return {name: [None, second] for name, (second,) in run(seen[1:]).items()}
        outputs: Outputs = run(seen)
        return outputs

    @torch.no_grad()
    def update(self) -> None:
        """Update queues and centres with the last micro-batch. Call it after backward, which needs their old values."""
        for objective, student, teacher in self._pending:
            objective.update(pytree.tree_map_only(Tensor, torch.Tensor.detach, student), teacher)
        self._pending = []

    def assignments(self, moment: Moment) -> dict[str, Tensor]:
        """Return a sample of the teacher's distributions over prototypes, [N, K], for each term with prototypes.

        The sample is from the last forward pass. Call it before `update`.
        """
        found = {
            term.name: objective.assignments(teacher, moment)
            for term, (objective, _, teacher) in zip(self.recipe.terms, self._pending, strict=False)
        }
        return {name: value for name, value in found.items() if value is not None}

    def momentum(self, moment: Moment) -> float:
        """Return the teacher's momentum at `moment`."""
        schedule = self.recipe.teacher_momentum
        return 0.0 if schedule is None else value_at(schedule, moment)

    @torch.no_grad()
    def move_teacher(self, moment: Moment) -> None:
        """Update the whole teacher branch once."""
        if self.teacher is not None:
            self.move_parameters(moment)
            self.move_buffers(self.momentum(moment))

    def move_parameters(self, moment: Moment) -> None:
        """Update every parameter of the teacher."""
        self.average([name for name, _ in self.student.named_parameters()], self.momentum(moment))

    def average(self, names: Sequence[str], momentum: float) -> None:
        """Update the named parameters of the teacher."""
        assert self.teacher is not None
        source, target = dict(self.student.named_parameters()), dict(self.teacher.named_parameters())
        average_into([target[name] for name in names], [source[name] for name in names], momentum)

    def in_decoder(self, name: str) -> bool:
        """Whether a branch's parameter belongs to the decoder or to a head on it."""
        if name.startswith("heads."):
            term = name.split(".")[1]
            tap = next(one.tap for one in self.recipe.terms if one.name == term)
            return self.student.network.taps[tap].part == "decoder"
        return name.startswith(tuple(f"network.model.{prefix}" for prefix in self.student.network.decoder_names))

    def lr_scale(self, name: str) -> float:
        """Return the learning rate factor of a parameter for its part of the model; `name` is without the branch."""
        spec = self.recipe.optimiser
        if not name.startswith("network."):
            return 1.0
        if self.in_decoder(name):
            return spec.decoder_lr_scale
        return spec.encoder_lr_scale * (1.0 if spec.layer_decay == 1 else self.layer_scales[name])

    @cached_property
    def layer_scales(self) -> dict[str, float]:
        """The factor of `layer_decay` for each parameter of the student, by its name without the branch."""
        names = [name for name, _ in self.student.named_parameters()]
        inside = tuple(name for name in names if name.startswith("network.") and not self.in_decoder(name))
        return layer_scales([*names, "after"], encoder=inside, decay=self.recipe.optimiser.layer_decay)

    def move_buffers(self, momentum: float) -> None:
        """Update the teacher's BatchNorm statistics by the recipe's rule."""
        rule = self.recipe.teacher_buffers
        if rule == "own" or self.teacher is None:
            return
        pairs = list(zip(self.teacher.buffers(), self.student.buffers(), strict=True))
        for target, source in pairs:
            if rule == "averaged" and target.is_floating_point():
                target.lerp_(source, 1 - momentum)
            else:
                target.copy_(source)

    @property
    def exported(self) -> Network:
        """The network of the branch that the recipe exports."""
        if self.recipe.export == "teacher" and self.teacher is not None:
            return self.teacher.network
        return self.student.network


def apply_together(run: Callable[[Tensor], Any], inputs: list[Tensor]) -> list[Any]:
    """Return `run` of each input. Inputs of the same shape share a call, so BatchNorm sees them together."""
    outputs: list[Any] = [None] * len(inputs)
    for indices in same_kind([tuple(value.shape) for value in inputs]):
        answer = run(torch.cat([inputs[index] for index in indices]))
        leaves, structure = pytree.tree_flatten(answer)
        pieces = [leaf.chunk(len(indices)) for leaf in leaves]
        for place, index in enumerate(indices):
            outputs[index] = pytree.tree_unflatten([piece[place] for piece in pieces], structure)
    return outputs


def same_kind(kinds: Sequence[Any]) -> list[list[int]]:
    """Return the indices grouped by kind, in order of first appearance."""
    groups: dict[Any, list[int]] = {}
    for index, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(index)
    return list(groups.values())


def view_kind(view: View) -> tuple[Any, ...]:
    """Return the properties that views must share to pass through the network together."""
    return view.role, tuple(view.pixels.shape), view.mask is None, view.queries is None


def concatenate(views: Sequence[View]) -> View:
    """Concatenate views of the same kind into one batch."""
    first = views[0]
    joined: dict[str, Any] = {
        name: torch.cat([getattr(view, name) for view in views])
        for name, value in vars(first).items()
        if isinstance(value, Tensor)
    }
    return replace(first, **joined, side={})
