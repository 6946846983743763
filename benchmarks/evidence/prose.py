"""What the page docs/results.md says in words: how to read it, what the scenes are, what has not been run."""

from __future__ import annotations

INTRODUCTION = """# Does it work? Real pixels, with intervals

Written by `python -m benchmarks.evidence` from the lines in `benchmarks/results/evidence/`; do not edit it. Every score
is on scenes whose objects *and* backgrounds nothing was trained or tuned on. Each seed has a pre-training, a draw of
the labelled scenes, new weights and augmentation of its own; rows share the labelled scenes of a seed. The learning
rate of fine-tuning is chosen for each start by itself, on scenes that no table shows. Scores are mean ± half the 95 %
interval (Student's t) over n seeds; with n = 1 there is none, and nothing follows from such a number.

The scenes are photographic cut-outs on photographs, with exact masks: natural pixels in an unnatural arrangement, a few
hundred objects, small networks and short runs. They can show that a claim holds here or does not; they cannot stand for
COCO.
"""

SCENES = """## The scenes

`python -m benchmarks.scenes NAME --sheet FOLDER` makes a set and draws a sheet of it. Images are fetched when a set is
made, from Debian's and Python's package indices, and are in neither the repository nor a release; each set has a note
on its licences in `LICENCES.txt` and the packages' own statements in `copyright/`.

- `stamps`, 7 classes: photographic cut-outs (tuxpaint-stamps-default; GPL-2) on photographs
  (plasma-workspace-wallpapers, GPL-2 or later; lomiri-wallpapers-16.04, CC-BY or CC-BY-SA; mate-backgrounds, GPL-2 or
  later and CC-BY-SA-4.0; gcompris-qt-data, CC-BY-SA, CC-BY, public domain or GPL-3 or later; the last three file by
  file).
- `rooms`, 12 classes: rendered furniture (sweethome3d-furniture; CC-BY-3.0 and CC0) before walls and on floors with the
  structure of the same photographs.
- `corridors`, 8 classes: frames that ViZDoom (MIT) renders of Freedoom's levels (modified BSD, as its project states).
- `solar`, 2 classes of whole images: electroluminescence photographs of solar cells (elpv-dataset; CC-BY-NC-SA-4.0, so
  not for commercial use).

Objects and backgrounds of `stamps` and `rooms` are divided before anything is pasted: 55 % for unlabelled scenes and
labelled training scenes, 15 % to choose settings with, 30 % to test on; pictures of one animal stay together.
`corridors` divides whole levels; `solar` divides blocks of 60 cells in the order of the files, as the package does not
say where a module ends.
"""

NOT_RUN = """## What has not been run

Where a table or a section above says so. Beyond that, nothing on this page is about detection and instance
segmentation; ADCLR's queries, weight, crops and attention; or whether the online
measures of a run pick the better one.
"""
