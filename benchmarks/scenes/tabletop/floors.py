"""A script of the rendering environment: paint Infinigen's materials as pictures of floors.

It reads a task as JSON from standard input: `out`, the folder, and `floors`, a list of {name, material, seed} where
`material` is a module of infinigen.assets.materials and a class, as in "wood.Wood". It writes NAME.png: the colour of a
square of 3 m without light and shadow, 512 px wide. A material that fails, or is one flat colour, gets NAME.failed.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

SIDE_PX = 512
SIDE_M = 3.0
FLAT = 2.0  # smallest standard deviation of grey values, of 255


def main() -> None:
    """Paint the floors that the task names."""
    import bpy

    sys.path.insert(0, str(Path(__file__).parent))
    from spawn import start

    task = json.load(sys.stdin)
    out = Path(task["out"]).resolve()
    start()
    for floor in task["floors"]:
        if (out / f"{floor['name']}.png").is_file() or (out / f"{floor['name']}.failed").is_file():
            continue
        try:
            paint(bpy, floor["material"], floor["seed"], out / f"{floor['name']}.png")
        except Exception as error:  # a material can fail in any way; the catalogue leaves such a floor out
            (out / f"{floor['name']}.failed").write_text(f"{type(error).__name__}: {error}"[:200], encoding="utf-8")
        print(floor["name"], flush=True)


def paint(bpy: Any, material: str, seed: int, path: Path) -> None:
    """Save the colour of a material on a plane seen from above."""
    import numpy as np
    from infinigen.core.util.math import FixedSeed
    from PIL import Image

    bpy.ops.wm.read_factory_settings(use_empty=True)
    module, _, name = material.rpartition(".")
    with FixedSeed(seed):
        made = getattr(importlib.import_module(f"infinigen.assets.materials.{module}"), name)().generate()
    bpy.ops.mesh.primitive_plane_add(size=SIDE_M)
    bpy.context.active_object.data.materials.append(made)
    made.displacement_method = "BUMP"
    scene = bpy.context.scene
    camera = bpy.data.cameras.new("above")
    camera.type, camera.ortho_scale = "ORTHO", SIDE_M
    scene.camera = bpy.data.objects.new("above", camera)
    scene.camera.location = (0, 0, 2)
    scene.collection.objects.link(scene.camera)
    scene.render.engine, scene.cycles.device, scene.cycles.samples = "CYCLES", "CPU", 1
    scene.cycles.use_denoising = False
    scene.cycles.max_bounces = 0
    scene.render.resolution_x = scene.render.resolution_y = SIDE_PX
    scene.view_settings.view_transform = "Standard"
    bpy.context.view_layer.use_pass_diffuse_color = True
    scene.use_nodes = True
    nodes = scene.node_tree.nodes
    nodes.clear()
    layers, composite = nodes.new("CompositorNodeRLayers"), nodes.new("CompositorNodeComposite")
    scene.node_tree.links.new(layers.outputs["DiffCol"], composite.inputs[0])
    partial = path.with_suffix(".tmp.png")
    scene.render.filepath = str(partial)
    bpy.ops.render.render(write_still=True)
    with Image.open(partial) as picture:
        deviation = float(np.asarray(picture.convert("L"), np.float32).std())
    if deviation < FLAT:
        partial.unlink()
        raise ValueError(f"the material is flat ({deviation:.2f})")
    partial.replace(path)


if __name__ == "__main__":
    main()
