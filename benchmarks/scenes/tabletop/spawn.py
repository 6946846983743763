"""A script of the rendering environment: make Infinigen's objects and save each as one mesh.

It reads a task as JSON from standard input: `out`, the folder, and `assets`, a list of {name, factory, seed}. For each
asset it writes NAME.blend and then NAME.json with the lower and upper corner of its box; an asset whose factory fails
gets {"failed": reason} instead. Assets that have a NAME.json are skipped, so an interrupted run can continue.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

FACES = 30_000  # above these a mesh is decimated; the scenes show objects some 50 pixels across


def main() -> None:
    """Make the assets that the task names."""
    task = json.load(sys.stdin)
    out = Path(task["out"]).resolve()
    start()
    for asset in task["assets"]:
        facts = out / f"{asset['name']}.json"
        if facts.is_file():
            continue
        try:
            content = spawn(asset["factory"], asset["seed"], out / f"{asset['name']}.blend")
        except Exception as error:  # a factory can fail in any way; the catalogue leaves such an asset out
            content = {"failed": f"{type(error).__name__}: {error}"[:200]}
        partial = facts.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps({**asset, **content}), encoding="utf-8")
        partial.replace(facts)
        print(f"{asset['name']} {content}", flush=True)


def start() -> None:
    """Import Infinigen and set its defaults."""
    import infinigen
    from infinigen.core import init

    init.require_blender_addon = lambda *_, **__: None  # it would download extensions of Blender
    os.chdir(infinigen.repo_root())
    folders = ["infinigen_examples/configs_indoor", "infinigen_examples/configs_nature"]
    init.apply_gin_configs(folders, configs=[], overrides=[], skip_unknown=True)
    init.configure_blender()
    logging.disable(logging.WARNING)


def factory_named(name: str) -> Any:
    """Return a factory class by name, wherever Infinigen has it."""
    import gin
    import infinigen

    objects = infinigen.repo_root() / "infinigen" / "assets" / "objects"
    for part in sorted(path.name.removesuffix(".py") for path in objects.iterdir() if path.name[0] != "_"):
        with gin.unlock_config():
            module = importlib.import_module(f"infinigen.assets.objects.{part}")
        if hasattr(module, name):
            return getattr(module, name)
    raise LookupError(f"Infinigen has no factory {name}")


def spawn(factory: str, seed: int, path: Path) -> dict[str, Any]:
    """Save one asset and return its box and its number of faces."""
    import bpy
    import numpy as np
    from infinigen.core.util import blender as butil
    from infinigen.core.util.math import FixedSeed

    butil.clear_scene()
    with FixedSeed(seed):
        maker = factory_named(factory)(seed)
        asset = maker.spawn_asset(seed)
        maker.finalize_assets(asset)
    mesh = joined([asset, *asset.children_recursive])
    corners = np.empty(len(mesh.data.vertices) * 3, np.float32)
    mesh.data.vertices.foreach_get("co", corners)
    corners = corners.reshape(-1, 3)
    if not len(corners):
        raise ValueError("the mesh is empty")
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    bpy.data.libraries.write(str(partial), {mesh}, fake_user=True, compress=True)
    partial.replace(path)
    low, high = (side.astype(float).round(4).tolist() for side in (corners.min(0), corners.max(0)))
    return {"low": low, "high": high, "faces": len(mesh.data.polygons)}


def joined(objects: list[Any]) -> Any:
    """Return the meshes among some objects as one mesh with its modifiers applied and few enough faces."""
    import bpy

    shown = bpy.context.scene.objects
    meshes = [one for one in objects if one.type == "MESH" and one.name in shown]
    for one in list(shown):
        one.select_set(False)
    for one in meshes:
        one.hide_viewport = one.hide_render = False
        for constraint in list(one.constraints):
            one.constraints.remove(constraint)
        one.select_set(True)
        bpy.context.view_layer.objects.active = one
    bpy.ops.object.make_single_user(object=True, obdata=True)
    bpy.ops.object.convert(target="MESH")
    for one in meshes:
        place = one.matrix_world.copy()
        one.parent = None
        one.matrix_world = place
    bpy.context.view_layer.objects.active = meshes[0]
    if len(meshes) > 1:
        bpy.ops.object.join()
    mesh = bpy.context.view_layer.objects.active
    faces = len(mesh.data.polygons)
    if faces > FACES:
        mesh.modifiers.new("fewer", "DECIMATE").ratio = FACES / faces
        bpy.ops.object.convert(target="MESH")
    bpy.ops.object.transform_apply(location=True, rotation=True, scale=True)
    return mesh


if __name__ == "__main__":
    main()
