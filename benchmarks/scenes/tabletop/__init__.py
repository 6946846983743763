"""Photorealistic scenes: procedural objects on a floor, path-traced in the light of HDR images, with exact masks.

`plan` decides everything in plain Python; `spawn`, `floors` and `trace` are scripts that a rendering environment of its
own runs (`environment`), since Blender and Infinigen are no dependencies of the project; `frames` keeps what is
rendered, so that an interrupted rendering continues where it was.
"""
