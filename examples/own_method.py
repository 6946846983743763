"""A method of your own: LeJEPA's loss (arXiv 2511.08544). On the command line: --method own_method:lejepa."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

import dovetail
from dovetail.heads import VectorHeadSpec
from dovetail.objectives import Loss, Objective, ObjectiveSpec
from dovetail.recipe import OptimiserSpec, Recipe, Term
from dovetail.recipes import MOCO_VIEW, image_tap, pair_views


@dataclass(frozen=True)
class SIGReg(ObjectiveSpec):
    def build(self, head):
        return SIGRegLoss()


class SIGRegLoss(Objective):
    def forward(self, student, teacher, views, moment):
        z = torch.stack(student).to(torch.promote_types(student[0].dtype, torch.float32))  # [views, images, dim]
        slices = torch.randn(z.shape[2], 256, generator=torch.Generator().manual_seed(moment.step))
        t = torch.linspace(-5, 5, 17, device=z.device)
        angle = torch.einsum("vid,ds->vis", z, normalize(slices.to(z), dim=0))[..., None] * t
        gap = (angle.cos().mean(1) - torch.exp(-(t**2) / 2)) ** 2 + angle.sin().mean(1) ** 2  # from a normal's
        normality = z.shape[1] * torch.trapezoid(gap * torch.exp(-(t**2) / 2), t).mean()
        return Loss(0.95 * (z - z.mean(0)).square().mean() + 0.05 * normality, {"normality": normality})


def lejepa(taps, *, hidden: int = 2048, dim: int = 64, image_size: int = 224, base_lr: float = 5e-4):
    term = Term("image", image_tap(taps), VectorHeadSpec(hidden, dim), SIGReg())
    adamw, views = OptimiserSpec("adamw", base_lr, weight_decay=0.05), pair_views(MOCO_VIEW, image_size=image_size)
    return Recipe("lejepa", (term,), views, adamw, teacher_momentum=None, export="student")


if __name__ == "__main__":
    dovetail.pretrain(data="photos/", model="timm/resnet50", method=lejepa, out="runs/lejepa")
