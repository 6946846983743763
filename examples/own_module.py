"""A module of your own: name the encoder and the decoder, pre-train, and load the weights into a new one."""

import torch
from torch import nn

import dovetail


class Segmenter(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.skip = nn.Conv2d(32, 32, 1)  # between the parts: it is trained, exported and loaded, too
        self.up = nn.Sequential(nn.Conv2d(64, 32, 3, 1, 1), nn.Upsample(scale_factor=2))
        self.fuse = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.classifier = nn.Conv2d(32, classes, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        fine = self.fine(pixels)
        return self.classifier(self.fuse(self.skip(fine) + self.up(self.deep(fine))))


if __name__ == "__main__":
    taps = {"c1": "fine", "c2": "deep", "p1": "fuse"}
    dovetail.pretrain(data="photos/", model=Segmenter(), taps=taps, method="decon-sl", out="runs/segmenter")
    model = Segmenter(classes=9)
    print(dovetail.load_into(model, "runs/segmenter"))  # only the classifier stays fresh
