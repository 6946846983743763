"""A script of the rendering environment: render scenes by path tracing, with the number of each pixel's object.

It reads a task as JSON from standard input: `out`, `assets` (a folder), `floors` (pictures by name), `side_px`,
`samples` and `scenes`, each as `plan.SceneSpec.to_json` gives it. For each scene it writes SPLIT/00000.png, SPLIT/
00000-ids.png (0: no object, k: object k) and, last, SPLIT/00000.json. Scenes that have the last are skipped, so an
interrupted run can continue, and several can share the work.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import bpy
import Imath
import numpy as np
import OpenEXR
from PIL import Image

DETAIL = 6.0  # largest number of octaves of a noise


def main() -> None:
    """Render the scenes that the task names."""
    task = json.load(sys.stdin)
    out = Path(task["out"]).resolve()
    studio = Studio(task, out)
    for spec in task["scenes"]:
        stem = f"{spec['split']}/{spec['index']:05d}"
        if (out / f"{stem}.json").is_file():
            continue
        start = time.process_time()
        studio.render(spec, stem)
        print(f"{stem} {time.process_time() - start:.2f} s", flush=True)
    shutil.rmtree(studio.scratch)


class Studio:
    """A floor, a light and a camera that every scene sets anew; assets are loaded once."""

    def __init__(self, task: dict[str, Any], out: Path) -> None:
        self.task, self.out = task, out
        self.scratch = out / f".tracing-{os.getpid()}"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.loaded: dict[str, Any] = {}
        self.images: dict[str, Any] = {}
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self.scene = bpy.context.scene
        self.set_renderer()
        self.set_light()
        self.set_floor()
        self.set_camera()
        self.set_passes()

    def set_renderer(self) -> None:
        """Set the path tracer for small pictures: few samples, then a denoiser."""
        render, cycles = self.scene.render, self.scene.cycles
        render.engine, cycles.device = "CYCLES", "CPU"
        cycles.samples, cycles.use_adaptive_sampling = self.task["samples"], False
        cycles.use_denoising, cycles.denoiser, cycles.denoising_prefilter = True, "OPENIMAGEDENOISE", "FAST"
        cycles.max_bounces, cycles.transparent_max_bounces = 4, 6
        cycles.caustics_reflective = cycles.caustics_refractive = False
        render.resolution_x = render.resolution_y = self.task["side_px"]
        render.threads_mode, render.threads = "FIXED", 1  # several processes make better use of several cores
        render.image_settings.file_format = "PNG"
        self.scene.view_settings.view_transform = "AgX"

    def set_light(self) -> None:
        """Put an HDR image around everything."""
        world = bpy.data.worlds.new("light")
        self.scene.world, world.use_nodes = world, True
        # The default map, as large as the HDR image, takes longer to make than the whole picture to render.
        world.cycles.sampling_method, world.cycles.sample_map_resolution = "MANUAL", 256
        nodes, links = world.node_tree.nodes, world.node_tree.links
        self.sky, self.sky_place = nodes.new("ShaderNodeTexEnvironment"), nodes.new("ShaderNodeMapping")
        self.background = nodes["Background"]
        links.new(nodes.new("ShaderNodeTexCoord").outputs["Generated"], self.sky_place.inputs[0])
        links.new(self.sky_place.outputs[0], self.sky.inputs[0])
        links.new(self.sky.outputs[0], self.background.inputs[0])

    def set_floor(self) -> None:
        """Lay a floor with a picture on it."""
        bpy.ops.mesh.primitive_plane_add(size=24)
        material = bpy.data.materials.new("floor")
        material.use_nodes = True
        bpy.context.active_object.data.materials.append(material)
        nodes, links = material.node_tree.nodes, material.node_tree.links
        self.paint, self.paint_place = nodes.new("ShaderNodeTexImage"), nodes.new("ShaderNodeMapping")
        self.floor = nodes["Principled BSDF"]
        self.paint.extension = "MIRROR"
        links.new(nodes.new("ShaderNodeTexCoord").outputs["Object"], self.paint_place.inputs[0])
        links.new(self.paint_place.outputs[0], self.paint.inputs[0])
        links.new(self.paint.outputs[0], self.floor.inputs["Base Color"])

    def set_camera(self) -> None:
        """Put a camera into the scene."""
        self.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
        self.scene.collection.objects.link(self.camera)
        self.scene.camera = self.camera

    def set_passes(self) -> None:
        """Have the number of each pixel's object written beside the picture."""
        bpy.context.view_layer.use_pass_object_index = True
        self.scene.use_nodes = True
        nodes, links = self.scene.node_tree.nodes, self.scene.node_tree.links
        nodes.clear()
        layers, numbers = nodes.new("CompositorNodeRLayers"), nodes.new("CompositorNodeOutputFile")
        links.new(layers.outputs["Image"], nodes.new("CompositorNodeComposite").inputs[0])
        numbers.format.file_format, numbers.format.color_depth = "OPEN_EXR", "16"
        numbers.base_path, numbers.file_slots[0].path = str(self.scratch), "ids"
        links.new(layers.outputs["IndexOB"], numbers.inputs[0])

    def render(self, spec: dict[str, Any], stem: str) -> None:
        """Render a scene and write its files, the one that says "done" last."""
        self.light_up(spec["light"], spec["floor"])
        self.aim(spec["camera"])
        objects = [self.put(one, number) for number, one in enumerate(spec["objects"], start=1)]
        self.scene.frame_set(0)
        self.scene.cycles.seed = spec["noise"]
        self.scene.render.filepath = str(self.scratch / "picture.png")
        bpy.ops.render.render(write_still=True)
        for one in objects:
            bpy.data.objects.remove(one)
        target = self.out / stem
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.numbers()).save(self.scratch / "ids.png")
        (self.scratch / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        (self.scratch / "picture.png").replace(target.with_suffix(".png"))
        (self.scratch / "ids.png").replace(target.with_name(f"{target.name}-ids.png"))
        (self.scratch / "spec.json").replace(target.with_suffix(".json"))

    def numbers(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return [S, S] the number of each pixel's object."""
        path = self.scratch / "ids0000.exr"
        file = OpenEXR.InputFile(str(path))
        raw = file.channel("V", Imath.PixelType(Imath.PixelType.FLOAT))
        file.close()
        path.unlink()
        side = self.task["side_px"]
        return np.rint(np.frombuffer(raw, np.float32)).reshape(side, side).astype(np.uint8)

    def light_up(self, light: dict[str, Any], floor: dict[str, Any]) -> None:
        """Set light and floor."""
        skies = Path(bpy.utils.resource_path("LOCAL")) / "datafiles" / "studiolights" / "world"
        self.sky.image = self.image(str(skies / f"{light['image']}.exr"))
        self.sky_place.inputs["Rotation"].default_value[2] = light["turn"]
        self.background.inputs[1].default_value = light["strength"]
        self.paint.image = self.image(self.task["floors"][floor["image"]])
        self.paint_place.inputs["Scale"].default_value = (1 / floor["metres"],) * 3
        self.paint_place.inputs["Rotation"].default_value[2] = floor["turn"]
        self.floor.inputs["Roughness"].default_value = floor["roughness"]

    def image(self, path: str) -> Any:
        """Return a picture, read once."""
        if path not in self.images:
            self.images[path] = bpy.data.images.load(path)
        return self.images[path]

    def aim(self, camera: dict[str, Any]) -> None:
        """Set the camera."""
        from mathutils import Vector

        self.camera.data.lens, self.camera.data.sensor_width = camera["lens_mm"], 36.0
        place, target = Vector(camera["place"]), Vector(camera["target"])
        self.camera.location = place
        self.camera.rotation_euler = (target - place).to_track_quat("-Z", "Y").to_euler()

    def put(self, one: dict[str, Any], number: int) -> Any:
        """Place a copy of an asset, its middle at (x, y) and its lowest point on the floor."""
        copy = self.asset(one["asset"]).copy()
        scale, turn, (middle_x, middle_y, low) = one["scale"], one["turn"], one["offset"]
        across, along = scale * middle_x, scale * middle_y
        copy.scale, copy.rotation_euler = (scale,) * 3, (0, 0, turn)
        copy.location = (
            one["x"] - across * math.cos(turn) + along * math.sin(turn),
            one["y"] - across * math.sin(turn) - along * math.cos(turn),
            -scale * low,
        )
        copy.pass_index = number
        self.scene.collection.objects.link(copy)
        return copy

    def asset(self, name: str) -> Any:
        """Return an asset, read once, and made cheaper to render in ways that a small picture does not show."""
        if name not in self.loaded:
            path = Path(self.task["assets"]) / f"{name}.blend"
            with bpy.data.libraries.load(str(path), link=False) as (there, here):
                here.objects = there.objects[:1]
            self.loaded[name] = here.objects[0]
            for material in self.loaded[name].data.materials:
                if material:
                    material.displacement_method = "BUMP"
                    simplify(material.node_tree)
        return self.loaded[name]


def simplify(tree: Any) -> None:
    """Take from a material what costs much and shows nothing in a small picture.

    Rounded edges trace rays of their own at each point: the plain normal replaces them. Smooth cells look at 125
    neighbours: plain cells look at 27. Noise needs no detail finer than a pixel.
    """
    if tree is None:
        return
    for node in list(tree.nodes):
        if node.type == "GROUP":
            simplify(node.node_tree)
        elif node.type == "TEX_VORONOI" and node.feature == "SMOOTH_F1":
            node.feature = "F1"
        elif node.type == "TEX_NOISE":
            node.inputs["Detail"].default_value = min(node.inputs["Detail"].default_value, DETAIL)
        elif node.type == "BEVEL":
            plain = tree.nodes.new("ShaderNodeNewGeometry").outputs["Normal"]
            for target in [link.to_socket for link in node.outputs[0].links]:
                tree.links.new(plain, target)
            tree.nodes.remove(node)


if __name__ == "__main__":
    main()
