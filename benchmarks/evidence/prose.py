"""What the page docs/results.md says in words: how to read it, what the sets are, what has not been run."""

from __future__ import annotations

INTRODUCTION = """# Does it work? Real pixels, with intervals

Written by `python -m benchmarks.evidence` from the lines in `benchmarks/results/evidence/`; do not edit it. Every score
is on parts of photographs, or on objects *and* backgrounds, that nothing was trained or tuned on. Each seed has a
pre-training, a draw of the labelled images (balanced over their classes), new weights and augmentation of its own; rows
share the labelled images of a seed. The learning rate of fine-tuning is chosen for each start by itself, by one
fine-tuning of the first seed for each candidate on images that no table shows, so that of two rates that do about as
well either may be taken, which can move a row by some points. Scores are mean ± half the 95 % interval (Student's t)
over n seeds; with n = 1 there is none, and nothing follows from such a number. Intervals are over seeds, not over test
images, which all rows share, nor over choices of the rate, and of one comparison at a time: of a hundred differences
where nothing is, five are bold. "s" is the time of pre-training in seconds, the median over seeds, beside other work on
the same machine; equal runs differ by up to a half.
"""

FOUND = """## What the tables of the processor's budget say

- **Pre-training of CNNs pays**: after every method, segmentation is above training from scratch at every share of the
  labels, by 2 to 9 points, and for sure but in one case of 64: DeCon-ML over PixPro with its decoder, with all labels.
  With four labelled images (1 %) the bar is low: a histogram of edges alone, without a network, is above training from
  scratch in the mean, and pre-trained CNNs are two to five points above it, for sure in six rows of 16.
- **DeCon over its base, for as many steps**: over SlotCon no difference of the encoders can be told, and DeCon of all
  levels (DeCon-ML) with its decoder is two points behind at 10 %. Over DenseCL the encoder of one level (DeCon-SL) is
  behind at 5 %, that of all levels above at 100 %, by one to two points each, and no other difference can be told. Over
  PixPro DeCon-SL is above at 10 %, by as much, DeCon-ML with its decoder two points behind at 100 %, and no other
  difference can be told. The gain that its paper reports on VOC, +1.4 mIoU, is of far longer runs and would hardly
  stand out from the intervals here.
- **DeCon over its base, for the same time**: a step takes about twice as long, as far as seconds beside other work can
  tell, and DenseCL, the one base that was given the time, for twice as many steps is two to four points above DeCon-SL
  over DenseCL, for sure at 10 and 100 %, and one to three above DeCon-ML, for sure at 5 and 10 %.
- **DeCon's options**, over DenseCL: the encoder needs a loss of its own. With the decoder's alone (alpha 0) scores are
  five to six points lower, about those of training from scratch. A quarter or three quarters of the weight for the
  encoder, and the level p3, cannot be told from a half and p2. Lateral dropout in DeCon-ML pays by a point for the
  encoder at 100 %, and makes no difference that can be told elsewhere. Nor do the two quirks of the official momentum,
  over SlotCon: a counter at twice the pace, and prototypes of the teacher's decoder that stay as they were drawn.
- **Short runs want a schedule of their own**: the small preset has heads for few images and the published momenta,
  rates and augmentations, the short one those for some hundred steps. After the short one DenseCL is a point above the
  small one from 5 % of the labels on, DeCon over it two to three with its decoder up to 10 %, and SlotCon six to seven
  at every share: after the small one it is about where training from scratch is. (DeCon's row of the small preset has
  the short one's grid for the decoder. How much each method was tried before its short preset was fixed is not on
  record.)
- **Taking the decoder along** pays after DeCon-SL over DenseCL at 5 % of the labels, by two points. After DeCon-ML it
  costs two points over SlotCon at 10 and 100 %, and one over DenseCL at 10 %. Elsewhere it makes no difference that can
  be told; all means after DeCon-ML are below zero. The pictures below show a decoder that has learnt less than its
  encoder. With BatchNorm's statistics frozen it pays by two to three points at 10 and 100 %, but fine-tuning so is
  three to six points worse from 5 % on. A quarter of the rate for the encoder loses two to three points at 10 % and
  more, with the decoder at 5 % too, and with it gains one at 1 %. Measuring BatchNorm's statistics anew changes no
  score, as 200 steps leave nothing of where they began. The teacher's weights cannot be told from the student's. So the
  defaults stay: one rate, statistics that go on, the branch that the base's own code takes.
- **Higher rates of fine-tuning**: most rows of CNNs take the highest candidate, 0.004. With 0.008 for all, training
  from scratch is two points higher at 5 %, DenseCL two lower at 1 %, and pre-training four to six points above training
  from scratch. DeCon's encoder is then not behind DenseCL's at 5 %, and its decoder pays at 1 % and not for sure at 5
  %: such differences hang on the rate. With 0.016 as a candidate too, pre-training with DenseCL is one to three points
  above training from scratch, not for sure at 100 %: DenseCL takes that rate, for less than a tenth of a point over
  0.008 on the images to choose with, and on the test images is two to four points below what it has at 0.004. That
  DeCon is above it by two to four points there is the rate's doing.
- **Detection and instance segmentation**: 200 steps hardly begin to detect, at an AP of one to four per cent. From 5 %
  of the labels on, all sixteen starts from pre-training are one to four points above training from scratch, for sure,
  which about doubles it or more. DeCon's encoders cannot be told from their bases'. With its decoder DeCon of all
  levels is above its base for sure with all labels, by a point of box AP over SlotCon and PixPro and by two over
  DenseCL, there at 5 and 10 % too; but DenseCL took the higher of the candidate rates and DeCon the lower, and with the
  lower for both it is above DenseCL for sure with all labels alone. DenseCL for twice as many steps, which is about the
  same time, is level with it. DeCon of one level cannot be told from its bases, but for a tenth of a point below
  SlotCon at 1 %. Its decoder taken along is a point above its encoder alone over PixPro with all labels, and one to two
  over SlotCon, but there the encoder alone took the higher rate and the whole the lower, and with the lower for both no
  difference can be told; over DenseCL, both at the higher one, it costs half a point to one at 10 %. After DeCon of all
  levels it pays by a point of box AP over DenseCL at 10 %. Elsewhere it makes no difference that can be told. DenseCL
  for twice as many steps is above DeCon-SL over DenseCL in the mean everywhere, for sure above it with its decoder but
  at 5 %, by up to two and a half points; it took the lower rate, too.
- **Another decoder**: under a Unet, encoders pre-trained below an FPN are six to eight points above training from
  scratch; DeCon's cannot be told from DenseCL's. That of a Unet pre-trained whole with DeCon is two points above
  DenseCL's at 10 %, and cannot be told from it elsewhere; the Unet's decoder taken along makes no difference that can
  be told.
- **Another domain**: pre-training on textures is worth nothing on `rooms` and `corridors` that can be told, at any
  share of the labels, with the decoder or without. But 200 steps are too few there for training from scratch, too,
  which with all labels ends about two points above a colour histogram. After 500 steps on `corridors` it is seven above
  it, and every start from textures two to three points *below* training from scratch with all labels; with fewer, none
  can be told from it. Textures are grey and `corridors` has colours; whether that is why was not asked.
- **ADCLR**: over DINO for as many steps no gain can be told, and the linear probe loses two points, four of 200 test
  pieces. A step takes 1.6 times as long, and DINO for the same time is eight points above it in kNN of frozen features
  (its row's seconds are from when the machine had less else to do); after fine-tuning neither can be told from the
  other. Over iBOT the means of frozen features are higher for as many steps and lower for the same time, and no
  difference of them can be told. These rows took a rate and a temperature that had been chosen for DINO. A crop of a
  texture that is shrunk to a patch of 8 px and blurred by up to 2 may lose what tells the texture; with smaller crops,
  and without the blur, the means are higher, within the interval.
- **ADCLR, why not in 480 steps**: three things were looked into. *Settings*: rate and temperature were chosen for each
  by itself, of nine candidates, with two seeds and pieces that no table has (`benchmarks/results/token_settings.md`).
  ADCLR takes four times the preset's rate, which adds six and two points to its kNN and costs DINO seven and 21; DINO
  keeps the rate and takes a softer teacher. On the test pieces neither can be told from itself at the preset's
  settings, nor one from the other: ADCLR's means are two points above DINO's, with intervals of six and eleven.
  *Length*: with four times as many steps kNN of DINO is 21 points higher, so 480 steps are far too few. ADCLR at its
  own settings, which were chosen for 480, is then seven points behind DINO in the mean and not for sure; at DINO's
  settings it is level with it (+1 ± 9, +2 ± 11). But *after fine-tuning* ADCLR, for four times as many steps at DINO's
  settings, is above DINO for as many: by 1.5 ± 1.3 points of mIoU at 5 % of the labels and 1.2 ± 1.0 at 10 %, not for
  sure at 1 and 100 %; the paper claims a point over its rivals. It is above training from scratch for sure at 1 and 10
  %, as DINO is at 1 %. So length, or length with the softer teacher, is a reason; the row at DINO's settings was added
  after ADCLR at its own had been seen to fall behind. A step of ADCLR takes some 1.7 times as long, and DINO for the
  same time was not run at this length. *Its term*: within 250 steps the queries of a batch share six or seven of 128
  prototypes, at the end five, whatever the temperature, while class tokens under the softer teacher use eleven to
  thirteen (second picture of the monitors below). A term that sorts crops of ten textures into five heaps is soon
  learnt, which may limit what it adds; that was not shown. Runs of the paper's length were not made.
- **Solar cells**: no pre-training of a ViT on 1,400 photographs of cells shows a gain there. kNN of frozen features is
  two points *below* an untrained ViT's after ADCLR and after iBOT, and no linear probe can be told from its. A frozen
  untrained ViT is nine to ten points above the commoner class; rates and crops were chosen on textures.
- **ADCLR's options**: one, five or twenty queries instead of ten, a quarter of their weight or four times it, crops of
  1 to 5 or of 25 to 50 %, queries that are not blurred, and attention both ways: none can be told from the plain form,
  with intervals of two to six points. Attention both ways, of which the paper warns that it collapses, has the highest
  mean of kNN, and no monitor shows a collapse (curves below). Nor are the runs long enough to say that it never comes.
- **ViTs after fine-tuning**, pre-trained for 480 steps: none is above training from scratch by more than what the
  intervals hold, but for half a point at 1 % after ADCLR over iBOT, though frozen encoders have learnt much. At 1 % all
  are five to six points *below* edges alone. Rates below 0.002 were candidates and won in two rows of eleven. ADCLR
  over iBOT is a point above iBOT at 100 % for as many steps, and not for sure for the same time; over DINO no gain can
  be told. ADCLR and DeCon jointly: the encoder is two points above DINO's at 10 %, not for sure elsewhere. Its decoder
  taken along costs one to two points, for sure but at 10 %, and the whole cannot be told from either alone. DeCon over
  DINO with its decoder is four points behind DINO at 100 %. These two are the only rows that took the rate 0.004, for a
  third of a point on the images to choose with, so that the rate may be what costs.
- **A run's own signals**: kNN of the frozen encoder on some labelled images, as `dovetail pretrain --knn-data` logs it,
  goes along with the score over the ten methods (0.78 and more; here these images are parts of the photographs that the
  test is made of); spread does so at 10 and 100 %, rank not for sure. Which of the five runs of one method is the best,
  no signal tells at two shares of the labels: of twelve intervals one leaves out zero, the spread's at 5 %.
"""

SCENES = """## The sets

`python -m benchmarks.scenes NAME --sheet FOLDER` makes a set and draws a sheet of it. Images are fetched when a set is
made, from Debian's and Python's package indices, and are in neither the repository nor a release; each set has a note
on its licences in `LICENCES.txt` and the packages' own statements in `copyright/`.

- `mosaics`, 10 classes: planes of several textures, grey, each at a scale, contrast and brightness of its own, cut from
  photographs in scikit-image's wheel; pre-training sees pieces of one texture. Nothing is downloaded. The labelled and
  unlabelled pictures show left halves of the photographs, those to choose settings with the quarters beside them, test
  pictures the right quarters.
- `scraps`, the same 10 classes as objects: one to three scraps of textures, torn along wavy lines, on another texture,
  with boxes and masks; pre-training sees the pieces of `mosaics`.
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

Mosaics are real pixels in an unnatural arrangement, and textures are all there is to tell: small networks learn them in
minutes, which is why the budget of a processor takes them. On `stamps` and `rooms` at 64 px, training from scratch
within that budget hardly got above a colour histogram, with all labels as with few, so nothing could be compared there.
Such sets can show that a claim holds here or does not; they cannot stand for COCO.
"""

NOT_RUN = """## What has not been run

Where a table or a section above says so. Nothing was run on a GPU: there was none. `python -m benchmarks.evidence
--budget gpu --cache FOLDER --keep` can be stopped at any time and goes on where it was, within a pre-training from its
last checkpoint. On a machine without a network it needs, for all questions on `stamps` alone, the folder `packages` of
another machine's cache and nothing else beside the program: 39 MB (`benchmarks/results/evidence_packages.md`), of which
it makes the scenes itself. That much was tried, on a processor and with the scenes of `--budget tiny`; how long the
budget takes on a GPU is not known.
"""

PICTURES = """## What the networks see

Of the first seed, on test mosaics; `python -m benchmarks.evidence.pictures` pre-trains and draws them. Nothing was
chosen: they are the first test mosaic and every fiftieth.

SlotCon's slots over the encoder's 4 x 4 cells, after one step and after the last. One slot wins everything at first; at
the end cells of one texture share a slot, without a label.

![Slots of the encoder after one step](pictures/results_slots_encoder_before.png)
![Slots of the encoder after pre-training](pictures/results_slots_encoder_after.png)

Slots over the decoder's 32 x 32 cells (DeCon over SlotCon). They become regions, but of light and of edges more than of
textures: 7 follows strong edges in all four mosaics. The decoder has learnt less in these steps than the encoder.

![Slots of the decoder after one step](pictures/results_slots_decoder_p2_before.png)
![Slots of the decoder after pre-training](pictures/results_slots_decoder_p2_after.png)

Principal components of encoder and decoder, before and after. A failure: after DeCon over DenseCL, what varies most in
the decoder's map is how near a cell is to the border of the picture, which zero padding can give away, more than the
texture.

![Components after DeCon over SlotCon](pictures/results_pca_decon-sl.png)
![Components after DeCon over DenseCL](pictures/results_pca_decon-sl-densecl.png)

The monitors of collapse during ADCLR's pre-trainings (`python -m benchmarks.evidence.curves`): means of the five seeds,
and bands from the least to the most. At the end a batch uses some five to nine prototypes, with queries and without;
rank and spread settle far from zero, with attention both ways as with one.

![Monitors of collapse over DINO and ADCLR](pictures/results_adclr_monitors.png)

The same for four times as many steps, each at its own settings (ADCLR's teacher at a temperature of 0.01), and ADCLR at
DINO's too (0.04).

![Monitors of collapse over longer runs](pictures/results_adclr_monitors_longer.png)
"""
