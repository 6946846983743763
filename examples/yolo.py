"""The backbone and the neck of a YOLO of Ultralytics, which is under the AGPL and no dependency of this package.

    pip install ultralytics

Layers 0 to 9 are the backbone; layers 15, 18 and 21 return the neck's maps at strides 8, 16 and 32. The same from the
command line: --model yolo:build --encoder model.9 --decoder model.15,model.18,model.21
"""

from torch import nn

import dovetail


def build() -> nn.Module:
    """Return YOLOv8 nano with random weights."""
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", verbose=False)
    assert isinstance(model, nn.Module)
    return model


if __name__ == "__main__":
    parts = {"encoder": "model.9", "decoder": ["model.15", "model.18", "model.21"]}
    rest = {"method": "decon-ml", "recipe": {"lateral_dropout": 0.0}, "out": "runs/yolo"}  # all levels of the neck
    dovetail.pretrain(data="photos/", model=build(), **parts, **rest)
    model = build()
    print(dovetail.load_into(model, "runs/yolo"))  # the detection head stays fresh
