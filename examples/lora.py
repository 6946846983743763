"""Low-rank adapters (LoRA, arXiv 2106.09685) on a frozen backbone: only they and the decoder train."""

import torch
import torchvision
from torch import nn

import dovetail


class LoRA(nn.Module):
    """A frozen 1x1 convolution plus a trainable product of two thin ones, which begins as zero."""

    def __init__(self, base: nn.Conv2d, rank: int = 8) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, rank, 1, stride=base.stride, bias=False)
        self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.base(pixels) + self.up(self.down(pixels))


def build() -> nn.Module:
    """Return an FCN on a ResNet-50, whose trained weights you would load here before freezing them."""
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)
    model.backbone.requires_grad_(False)
    for name, part in list(model.backbone.named_modules()):
        if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1):
            model.backbone.set_submodule(name, LoRA(part))
    return model


if __name__ == "__main__":
    dovetail.pretrain(data="photos/", model=build(), method="decon-sl", out="runs/lora")
    print(dovetail.load_into(build(), "runs/lora"))
