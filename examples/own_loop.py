"""A training loop of your own with SlotCon's head, loss and teacher from this package."""

import torch
from torch import nn
from torchvision.ops import roi_align
from torchvision.transforms import v2

from dovetail.heads import SlotHeadSpec
from dovetail.objectives import SlotSpec
from dovetail.schedules import Cosine, Moment
from dovetail.train import Teacher
from dovetail.views import View


def train(images: torch.Tensor, steps: int = 100, batch: int = 8, side: int = 64) -> list[float]:
    """Train on images [N, 3, H, H] in [0, 1] and return the losses."""
    spec = SlotHeadSpec(hidden=256, dim=64, prototypes=32)
    encoder = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 2, 2))
    student = nn.Sequential(encoder, spec.build(channels=64))
    teacher, loss = Teacher(student, momentum=Cosine(0.99, 1.0)), SlotSpec(predictor_hidden=256).build(spec)
    optimiser = torch.optim.AdamW([*student.parameters(), *loss.parameters()], lr=1e-3)
    jitter, losses = v2.ColorJitter(0.4, 0.4, 0.2, 0.1), []
    for step in range(steps):
        chosen = images[torch.randint(len(images), (batch,))]
        left = torch.rand(batch, 2, 2) * 0.5  # a random half of each side, for each of two views
        boxes = torch.cat([left, left + 0.5], dim=2).unbind(1)
        crops = [roi_align(chosen, [*(box * images.shape[-1])[:, None]], side, aligned=True) for box in boxes]
        views = [View.of(jitter(pixels), box=box) for pixels, box in zip(crops, boxes, strict=True)]
        targets = [teacher(view.pixels) for view in views]
        total = loss([student(view.pixels) for view in views], targets, views).total
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        loss.update([], targets)  # the centre
        teacher.follow(student, Moment(step + 1, steps, steps_per_epoch=steps))
        losses.append(total.item())
    return losses
