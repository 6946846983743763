"""What each set says about the licences of its images. Only the demo's scenes are in the repository."""

from __future__ import annotations

from collections.abc import Mapping

_NEVER = "Made on this machine for measuring; do not hand the images on without going through the terms below.\n\n"
_PHOTOGRAPHS = """
Backgrounds, statements of each package beside this file in copyright/:
  plasma-workspace-wallpapers  GPL-2 or later
  lomiri-wallpapers-16.04      CC-BY or CC-BY-SA, file by file
  mate-backgrounds             GPL-2 or later, CC-BY-SA-4.0, file by file
  gcompris-qt-data             CC-BY-SA, CC-BY, public domain, GPL-3 or later, file by file
"""

_TEXTURES = (
    f"{_NEVER}Cut from photographs in scikit-image's wheel (BSD-3-Clause for the package), which tells their "
    "origins and terms\nfile by file in skimage/data/README.txt.\n"
)

DEMO = """The images in this folder may be used, changed and redistributed.

Objects and floors were made with Infinigen (https://github.com/princeton-vl/infinigen), Copyright (c) Princeton
University, under the BSD 3-Clause licence. The light, and what is seen beyond the floor, are the HDR images that come
with Blender, by Greg Zaal (HDRI Haven), under CC0. Blender rendered the images; its licence does not extend to what it
renders.
"""
"""Of the scenes that the repository holds for the demo."""

NOTES: Mapping[str, str] = {
    "stamps": f"{_NEVER}Objects: tuxpaint-stamps-default, GPL-2, by many authors (copyright/).\n{_PHOTOGRAPHS}",
    "rooms": f"{_NEVER}Objects: sweethome3d-furniture, CC-BY-3.0 and CC0; creators are in copyright/.\n{_PHOTOGRAPHS}",
    "corridors": (
        f"{_NEVER}Frames rendered by ViZDoom (MIT) from Freedoom's levels and pictures, which come with it; Freedoom's "
        "own\nterms are the modified BSD licence, as its project states; the package has no copy of them.\n"
    ),
    "solar": (
        f"{_NEVER}elpv-dataset: CC-BY-NC-SA-4.0, so no commercial use of images or of what is derived from them (its "
        "code:\nApache-2.0). Cite Deitsch et al., Solar Energy 185 (2019), and Buerhop-Lutz et al. (2018).\n"
    ),
    "tabletop": (
        f"{_NEVER}Objects and painted floors: made with Infinigen (BSD-3-Clause) and rendered with Blender, whose "
        "licence does\nnot extend to what it renders. Light: the HDR images that come with Blender (CC0).\n"
        f"Other floors show photographs.\n{_PHOTOGRAPHS}"
    ),
    "mosaics": _TEXTURES,
    "scraps": _TEXTURES,
}
