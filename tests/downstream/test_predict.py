"""`predict` writes what a fine-tuned run says; `compare` puts runs side by side."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dovetail
from dovetail.cli import run as run_command
from dovetail.downstream.examples import with_boxes
from dovetail.downstream.predictions import legend_name, written_names
from dovetail.downstream.segment.colours import legend, palette
from tests.downstream.coco_files import write_coco
from tests.downstream.pictures import COLOURS, class_folder, exported_run, noisy
from tests.downstream.test_finetune import mask_folder

FAST: dict[str, Any] = {"accelerator": "cpu", "precision": "float32", "workers": 0}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of odd sizes, two of one stem, one deeper down, one grey; and one that is none."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    noisy(COLOURS[0], (50, 41), rng).save(folder / "a.png")
    noisy(COLOURS[1], (37, 64), rng).save(folder / "a.jpg")
    noisy(COLOURS[2], (40, 40), rng).convert("L").save(folder / "deep" / "b.png")
    (folder / "broken.jpg").write_bytes(b"words")
    return folder


def unread_in(out: Path) -> list[str]:
    """Return the names of the images that were left out."""
    return [Path(json.loads(line)["path"]).name for line in (out / "unread.jsonl").read_text().splitlines()]


def probabilities_in(out: Path) -> np.ndarray:
    """Return the probabilities [images, classes] of predictions.csv, by class."""
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([[float(share) for _, share in sorted(zip(row[1::2], row[2::2], strict=True))] for row in rows])


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model fine-tuned for segmentation."""
    folder = tmp_path_factory.mktemp("segmenter")
    run = exported_run(folder / "run", "timm/test_resnet+fpn(channels=16)")
    data = mask_folder(folder / "masks", images=5)
    dovetail.finetune_segment(run=run, data=data, out=folder / "tuned", steps=1, batch_size=2, crop_size=32, **FAST)
    return folder / "tuned"


def test_segmentation_masks_have_the_photographs_sizes(
    segmenter: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dovetail.predict(run=segmenter, data=photos, out=tmp_path / "out", **FAST)
    begins, ends = capsys.readouterr().out.splitlines()
    assert begins == "Predicting 4 images on cpu …"
    assert ends.startswith(f"3 images, predictions in {out}; skipped 1 unreadable: broken.jpg (see ")
    assert unread_in(out) == ["broken.jpg"]
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {"a.png.png", "a.jpg.png", "deep/b.png"}
    with Image.open(out / "a.jpg.png") as mask:
        assert (mask.mode, mask.size) == ("P", (37, 64))
        assert int(np.asarray(mask).max()) < 3
        assert mask.getpalette()[3:6] == [128, 0, 0]  # VOC's second colour
    assert json.loads((out / "classes.json").read_text()) == {"0": "0", "1": "1", "2": "2"}


def test_overlays_show_classes_over_the_images(
    segmenter: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dovetail.predict(run=segmenter, data=photos, out=tmp_path / "out", overlays=True, **FAST)
    drawn = f"overlays in {out / 'overlays'} with the colours in {out / 'legend.png'}"
    assert f"predictions in {out}, {drawn}" in capsys.readouterr().out
    with Image.open(out / "overlays/a.jpg.png") as over, Image.open(out / "a.jpg.png") as mask:
        image = np.asarray(Image.open(photos / "a.jpg")).astype(int)
        assert over.size == (37, 64)
        assert np.abs(np.asarray(over) - (image + np.asarray(mask.convert("RGB"))) / 2).max() <= 1
    found = {
        int(label) for name in ("a.jpg", "a.png", "deep/b") for label in np.unique(Image.open(out / f"{name}.png"))
    }
    with Image.open(out / "legend.png") as drawn_legend:
        colours = {colour for _, colour in drawn_legend.getcolors(1 << 24)}
    every = [tuple(palette(0)[3 * label : 3 * label + 3]) for label in range(3)]
    assert {colour for colour in every[1:] if colour in colours} == {every[label] for label in found if label}


def test_a_legend_names_classes_beside_their_colours() -> None:
    few = legend({1: "wheat", 2: "soil"})
    longer = legend({1: "wheat", 2: "soil", 15: "a class with a rather long name"})
    assert longer.width > few.width
    assert longer.height > few.height
    same_width = {"wheat": legend({1: "ab"}), "maize": legend({1: "ba"})}
    assert same_width["wheat"].tobytes() != same_width["maize"].tobytes()
    assert legend_name([Path("legend.png"), Path("legend-2.png")]) == Path("legend-3.png")


def test_photographs_are_not_written_over(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, tmp_path / "link"):
        with pytest.raises(dovetail.DovetailError, match=r"b\.png is an input image and would be overwritten"):
            dovetail.predict(run=segmenter, data=photos, out=out, **FAST)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "few.txt").write_text("../photos/a.png\n../photos/deep/b.png\n")
    out = tmp_path / "lists" / "out"
    dovetail.predict(run=segmenter, data=tmp_path / "lists" / "few.txt", out=out, **FAST)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {"a.png", "b.png"}
    assert not (out / "unread.jsonl").exists()
    assert before == {path: path.read_bytes() for path in photos.rglob("*.*")}


def test_a_folder_with_other_files_is_refused(
    segmenter: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / ".hidden").write_text("x")
    (out / "deep" / "b.jpg").write_bytes((photos / "a.jpg").read_bytes())
    told = r"out contains files that `predict` did not write, such as 'deep/b\.jpg'; choose another folder with --out"
    with pytest.raises(dovetail.DovetailError, match=told):
        dovetail.predict(run=segmenter, data=photos, out=out, **FAST)
    assert {path.name for path in out.rglob("*.*")} == {".hidden", "b.jpg"}
    (out / "deep" / "b.jpg").unlink()
    dovetail.predict(run=segmenter, data=photos, out=out, **FAST)
    assert "Replacing" not in capsys.readouterr().out
    (photos / "a.jpg").unlink()
    dovetail.predict(run=segmenter, data=photos, out=out, **FAST)  # a.png is the only one of its stem now
    told = f"Replacing 3 files of an earlier `predict` in {out}; 2 of other images stay."
    assert told in capsys.readouterr().out.splitlines()
    (out / "a.jpg").touch()
    with pytest.raises(dovetail.DovetailError, match=r"such as 'a\.jpg'"):
        dovetail.predict(run=segmenter, data=photos, out=out, **FAST)


def test_a_list_of_unreadable_photographs_alone_is_a_mistake(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "few.txt").write_text("broken.jpg\nmissing.jpg\n")
    with pytest.raises(dovetail.DovetailError, match=r"None of the 2 images can be read \(.*\); check the data"):
        dovetail.predict(run=segmenter, data=photos / "few.txt", out=tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


def test_no_prediction_is_written_over_another(tmp_path: Path) -> None:
    base = tmp_path / "list"
    paths = [tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.jpg", base / "x.png", base / "deep" / "x.png"]
    names = written_names(paths, base)
    assert len(set(names.values())) == 4
    assert names[paths[0]] == Path("x.jpg.png")
    assert names[paths[1]] == Path("x.jpg.2.png")
    assert names[paths[3]] == Path("deep/x.png")
    names = written_names([base / ".." / "a" / "x.jpg", base / ".." / "b" / "x.jpg"], base)
    assert list(names.values()) == [Path("x.jpg.png"), Path("x.jpg.2.png")]
    assert list(written_names([Path("../x.jpg")], Path()).values()) == [Path("x.png")]
    several = [base / "x.jpg.jpg", base / "x.jpg", base / "x.tif"]
    assert len(set(written_names(several, base).values())) == 3


def test_classes_from_the_command_line(photos: Path, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run")
    data, tuned = class_folder(tmp_path / "classes"), tmp_path / "tuned"
    options = ["--accelerator", "cpu", "--workers", "0"]
    arguments = ["--run", str(run), "--data", str(data), "--out", str(tuned), "--steps", "12", "--batch-size", "6"]
    assert run_command(["finetune", "classify", *arguments, "--lr", "0.005", "--mixup", "0.2", *options]) == 0
    assert json.loads((tuned / "results.json").read_text())["rows"][0]["scores"]["top1"]["mean"] > 0.5
    odd = os.fsdecode(b"odd\xff.png")
    (photos / odd).write_bytes((photos / "a.png").read_bytes())
    arguments = ["--run", str(tuned), "--data", str(photos), "--out", str(tmp_path / "out")]
    assert run_command(["predict", *arguments, *options]) == 0
    assert unread_in(tmp_path / "out") == ["broken.jpg"]
    written = (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8", errors="surrogateescape")
    rows = list(csv.DictReader(written.splitlines()))
    assert {row["file"] for row in rows} == {"a.png", "a.jpg", "deep/b.png", odd}
    assert sum(float(rows[0][f"probability{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-3)
    assert rows[0]["class1"].startswith("n0000000")


def test_the_range_of_values_goes_from_the_run_to_the_predictions(tmp_path: Path) -> None:
    run, data = exported_run(tmp_path / "run"), class_folder(tmp_path / "set")
    twelve = tmp_path / "twelve"
    for path in data.rglob("*.JPEG"):
        grey = np.asarray(Image.open(path).convert("L"))
        for root, values in (("eight", grey), ("twelve", grey.astype(np.uint16) * 16 + grey // 16)):
            target = tmp_path / root / path.relative_to(data).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(target)
    described = json.loads((run / "exported/model.json").read_text())
    found = {}
    for root, extra in (
        ("eight", {}),
        ("twelve", {"value_range": [0, 4095]}),
        ("ignored", {"value_range": [0, 65535]}),
    ):
        (run / "exported/model.json").write_text(json.dumps({**described, "extra": extra}))
        out, images = tmp_path / f"tuned-{root}", twelve if root == "ignored" else tmp_path / root
        dovetail.finetune_classify(run=run, data=images, out=out, steps=2, batch_size=4, image_size=32, **FAST)
        dovetail.predict(run=out, data=images / "val", out=tmp_path / f"out-{root}", **FAST)
        found[root] = probabilities_in(tmp_path / f"out-{root}")
    # Resizing rounds 8 bits to whole levels, and 12 bits not.
    np.testing.assert_allclose(found["twelve"], found["eight"], atol=2e-4)
    assert np.abs(found["ignored"] - found["eight"]).max() > 5e-4
    assert json.loads((tmp_path / "tuned-twelve/task.json").read_text())["value_range"] == [0, 4095]
    other = tmp_path / "other"
    results = dovetail.finetune_classify(
        model="timm/test_resnet", data=twelve, out=other, steps=1, batch_size=4, value_range=[0, 4095], **FAST
    )
    assert results is not None
    assert not any("nearly black" in note for note in results.notes)
    with pytest.raises(dovetail.DovetailError, match=r"contains a classifier, .*; omit --overlays"):
        dovetail.predict(run=other, data=twelve / "val", out=tmp_path / "drawn", overlays=True, **FAST)


def test_boxes_are_drawn_with_their_names() -> None:
    plain = torch.zeros(3, 60, 80, dtype=torch.uint8)
    box = torch.tensor([[10.0, 20.0, 70.0, 50.0]])
    nameless = np.asarray(with_boxes(plain, box, (213, 94, 0)))
    assert nameless[20, 40].tolist() == nameless[35, 10].tolist() == [213, 94, 0]
    assert nameless[35, 40].tolist() == [0, 0, 0]
    named = np.asarray(with_boxes(plain.float(), box, (213, 94, 0), ["cat 0.93"]))
    assert (named != nameless).any()
    assert not np.asarray(with_boxes(plain, torch.zeros(0, 4), (213, 94, 0), [])).any()


def test_detections_are_cocos_results(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = exported_run(tmp_path / "run", "timm/test_resnet+fpn(channels=16)"), write_coco(tmp_path / "coco")
    tuned = tmp_path / "tuned"
    dovetail.finetune_detect(
        run=run, data=data, out=tuned, steps=1, batch_size=1, image_size=40, head="retinanet", **FAST
    )
    capsys.readouterr()
    out = dovetail.predict(run=tuned, data=photos, out=tmp_path / "out", min_score=0.0, overlays=True, **FAST)
    drawn = f"overlays in {out / 'overlays'} with the boxes of a score of 0.5 or more"
    assert f"predictions in {out}, {drawn}" in capsys.readouterr().out
    with Image.open(out / "overlays" / "a.jpg.png") as overlay:
        assert overlay.size == (37, 64)
    assert not (out / "legend.png").exists()
    assert unread_in(out) == ["broken.jpg"]
    found = json.loads((out / "predictions.json").read_text())
    assert {one["category_id"] for one in found} <= {17, 38}
    assert all(one["category"] == {17: "cat", 38: "kite"}[one["category_id"]] for one in found)


def test_compare_puts_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = class_folder(tmp_path / "classes")
    for name in ("one", "two"):
        run = exported_run(tmp_path / "runs" / name, seed=len(name))
        dovetail.evaluate_knn(run=run, data=data, k=[1], **FAST)
    capsys.readouterr()
    assert run_command(["compare", str(tmp_path / "runs" / "one"), str(tmp_path / "runs" / "two")]) == 0
    shown = capsys.readouterr().out
    assert "one/evaluate-knn" in shown
    assert "two/evaluate-knn" in shown
    assert "different data" not in shown
    smaller = class_folder(tmp_path / "fewer", val=1)
    dovetail.evaluate_knn(run=tmp_path / "runs" / "two", data=smaller, k=[1], out=tmp_path / "other", **FAST)
    capsys.readouterr()
    assert run_command(["compare", str(tmp_path / "runs" / "one"), str(tmp_path / "other")]) == 0
    shown = capsys.readouterr().out
    assert "evaluated on different data" in shown
    assert "classes " in shown
    assert "fewer " in shown
    rows = dovetail.compare([str(tmp_path / "runs" / "one" / "evaluate-knn")])["evaluate knn"]
    assert rows[0].setting == {"run": "evaluate-knn", "k": 1}
    alike = [str(tmp_path / "runs" / name / "evaluate-knn") for name in ("one", "two")]
    assert [row.setting["run"] for row in dovetail.compare(alike)["evaluate knn"]] == alike
    file = str(tmp_path / "runs" / "one" / "evaluate-knn" / "results.json")
    rows = dovetail.compare([file, str(tmp_path / "runs" / "one" / "evaluate-knn")])["evaluate knn"]
    assert [row.setting["run"] for row in rows] == ["evaluate-knn"]  # named twice, shown once
    page = tmp_path / "runs" / "comparison.html"  # which `runs/*` names too
    page.write_text("<html>")
    assert list(dovetail.compare([str(page), file])) == ["evaluate knn"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare"], "results is missing"),
        (["compare", "nowhere"], "nowhere does not exist"),
        (["compare", "new\nline"], "new\\nline does not exist"),
        (["compare", "."], "in the 1 folders"),
        (["predict", "--data", ".", "--out", "y"], "--run is missing"),
        (["predict", "--run", ".", "--data", ".", "--out", "y"], "contains no fine-tuned model"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    assert sentence in capsys.readouterr().err
