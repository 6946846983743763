"""`finetune` from end to end on tiny sets: numbers, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dovetail
from dovetail.cli import run as run_command
from dovetail.downstream.labels.mask_sets import MaskFiles
from dovetail.downstream.segment.model import build_segmenter
from dovetail.downstream.start import chosen_starts, marked, source_of
from dovetail.errors import DovetailError, WeightsError
from dovetail.networks import lite0
from dovetail.networks.build import build_network
from dovetail.weights.exported import save_exported
from dovetail.weights.start import begin_from
from tests.downstream.coco_files import write_coco
from tests.downstream.pictures import COLOURS, class_folder, exported_run, noisy

FAST: dict[str, Any] = {"accelerator": "cpu", "precision": "float32", "workers": 0}


def mask_folder(root: Path, *, images: int = 10, side: int = 48) -> Path:
    """Write images of two halves in the classes' colours, and their masks."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for index in range(images):
        left, right = rng.permutation(3)[:2]
        mask = np.full((side, side), left, np.uint8)
        mask[:, side // 2 :] = right
        image = noisy(COLOURS[left], (side, side), rng)
        image.paste(noisy(COLOURS[right], (side // 2, side), rng), (side // 2, 0))
        mask[0] = 255
        image.save(root / "images" / f"{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mask_folder(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run(tmp_path_factory.mktemp("run"), "timm/test_resnet+fpn(channels=16)")


def test_segmentation_learns_and_leaves_its_files(masks: Path, run: Path, tmp_path: Path) -> None:
    results = dovetail.finetune_segment(
        run=run, data=masks, out=tmp_path, steps=15, batch_size=3, lr=0.01, crop_size=48, **FAST
    )
    assert results is not None
    assert results.rows[0].scores["mIoU"].mean > 0.6
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content["rows"][0]["scores"]) == {"mIoU", "aAcc", "mAcc"}
    assert content["data"]["format"] == "folders"
    assert set(content["details"]["iou_per_class"]) == {"0", "1", "2"}
    assert json.loads((tmp_path / "task.json").read_text())["task"] == "segment"
    assert (tmp_path / "model.safetensors").is_file()


def test_a_table_over_starts_fractions_and_seeds(
    masks: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--run", str(run), "--data", str(masks), "--out", str(tmp_path), "--steps", "1", "--batch-size", "2"]
    options += ["--crop-size", "32", "--accelerator", "cpu", "--workers", "0", "--seeds", "2"]
    options += ["--start", "random", "decoder", "--fraction", "0.25", "1.0"]
    assert run_command(["finetune", "segment", *options]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    settings = [(row["setting"]["start"], row["setting"]["images"]) for row in content["rows"]]
    assert settings == [(start, count) for start in ("random", "decoder") for count in (2, 8)]
    score = content["rows"][0]["scores"]["mIoU"]
    assert len(score["values"]) == 2
    assert (score["low"], score["high"]) == (None, None)  # two seeds give no interval
    assert score["deviation"] is not None
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 8
    shown = capsys.readouterr().out
    assert "(SD " in shown
    assert "Each trial takes 1 step of 2 images (crops of 32 px) with AdamW, peak learning rate 0.0005.\n" in shown
    assert "8 trials, 8 steps in all. The expected time follows after the first trial.\n" in shown
    assert shown.count("Expected time: about ") == 1
    assert shown.count("The trials took 1 step. Fine-tunings of fewer than 200 steps say little") == 1
    assert run_command(["finetune", "segment", *options]) == 0  # goes on where all is done
    assert "8 trials already finished" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text()) == content
    with (masks / "images" / "0.png").open("ab") as file:
        file.write(b" ")  # other data
    assert run_command(["finetune", "segment", *options[:-6], "--start", "random", "--fraction", "0.25"]) == 0
    assert "finished" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("timm/test_resnet", {}),
        ("timm/test_resnet", {"decoder": "fpn"}),
        ("timm/test_resnet+fcn(channels=16)", {"batch_norm": "frozen"}),
        ("timm/test_vit+fpn(channels=16)", {"encoder_lr_scale": 0.1}),
        ("timm/test_vit", {}),
        ("timm/test_vit", {"decoder": "upernet"}),
        ("smp/unet/tu-test_resnet", {"inference": "slide"}),
        pytest.param("torchvision/fcn_resnet50", {}, marks=pytest.mark.slow),
    ],
)
def test_every_family_of_models_is_segmented(model: str, options: dict[str, Any], masks: Path, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", model, image_size=64)
    results = dovetail.finetune_segment(
        run=run, data=masks, steps=1, batch_size=2, crop_size=40, fraction=[0.3], **FAST, **options
    )
    assert results is not None
    assert 0 <= results.rows[0].scores["aAcc"].mean <= 1
    assert (run / "finetune-segment" / "results.json").is_file()


def test_what_is_loaded_is_what_was_asked_for(run: Path) -> None:
    source = source_of(run, None)
    weights = dovetail.load(run).state_dict()
    for start, loaded in (("random", set()), ("encoder", {"encoder"}), ("decoder", {"decoder"}), ("all", None)):
        torch.manual_seed(1)
        _, body = build_segmenter(source, classes=3)
        source.load(body, start)
        for name, value in body.state_dict().items():
            if value.dim() < 2:
                continue
            expected = loaded is None or name.partition(".")[0] in loaded
            assert torch.equal(value, weights[name]) == expected, (start, name)


def test_imagenet_weights_are_a_start_with_the_same_random_numbers_after_it(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", "timm/tf_efficientnet_lite0+fpn(channels=16)", image_size=64)
    source, packaged = source_of(run, None), lite0.packaged_weights()
    torch.manual_seed(1)
    _, body = build_segmenter(source, classes=3)
    drawn = {name: value.clone() for name, value in body.state_dict().items()}
    state = torch.get_rng_state()
    source.load(body, "imagenet")
    assert torch.equal(torch.get_rng_state(), state)
    loaded = body.state_dict()
    for name, value in drawn.items():
        if value.dim() > 1:
            assert torch.equal(loaded[name], value) == (not name.startswith("encoder.")), name
    (stem,) = (value for name, value in loaded.items() if name.endswith("conv_stem.weight"))
    assert packaged is not None
    assert torch.equal(stem, packaged["conv_stem.weight"])


def test_a_file_and_another_run_are_starts_that_change_with_their_content(run: Path, tmp_path: Path) -> None:
    other = exported_run(tmp_path / "other", "timm/test_resnet+fpn(channels=16)", seed=7)
    source, weights = source_of(run, None), dovetail.load(other).state_dict()
    for start in (str(other), str(other / "exported" / "model.safetensors")):
        _, body = build_segmenter(source, classes=3)
        assert chosen_starts([start], source, target=body) == (start,)
        source.load(body, start)
        assert all(torch.equal(value, weights[name]) for name, value in body.state_dict().items())
    before = marked(str(other))
    exported_run(other, "timm/test_resnet+fpn(channels=16)", seed=8)
    assert marked(str(other)) != before
    assert marked("all") == "all"
    wrong = exported_run(tmp_path / "wrong", "timm/test_vit", image_size=64)
    with pytest.raises(WeightsError, match="fits"):
        chosen_starts([str(wrong)], source, target=body)


def test_a_start_with_the_weights_of_another_is_left_out(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder that pre-training kept frozen has the weights that the run started from."""
    torch.manual_seed(7)
    network = build_network("timm/tf_efficientnet_lite0+fpn(channels=16)", image_size=64)
    begin_from(network, "imagenet")
    normal: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    extra = {"frozen_encoder": "imagenet"}
    save_exported(network, tmp_path / "exported", method="test", extra=extra, **normal)
    options = ["--run", str(tmp_path), "--data", str(masks), "--out", str(tmp_path / "out"), "--steps", "1"]
    options += ["--batch-size", "2", "--crop-size", "32", "--accelerator", "cpu", "--workers", "0", "--start"]
    kept = f"Pre-training kept the encoder of {tmp_path} frozen, so start encoder has the weights that the run started "
    assert run_command(["finetune", "segment", *options, "imagenet", "encoder", "all"]) == 0
    told = capsys.readouterr().out
    plan = told.partition("2 trials, 2 steps in all.")[0]
    assert f"{kept}from (imagenet)." in plan
    left_out = "Start encoder is left out, because it has the same weights as start imagenet."
    assert left_out in plan
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["setting"]["start"] for row in content["rows"]] == ["imagenet", "all"]
    assert left_out in content["notes"]
    assert run_command(["finetune", "segment", *options, "encoder", "all"]) == 0
    told = capsys.readouterr().out
    assert kept in told
    assert "left out" not in told
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["setting"]["start"] for row in content["rows"]] == ["encoder", "all"]


@pytest.mark.parametrize(
    ("run_of", "model", "decoder", "expected"),
    [
        (None, "timm/test_resnet+fpn(channels=16)", "auto", "random"),
        ("timm/test_resnet+fpn(channels=16)", None, "auto", "all"),
        ("timm/test_resnet", None, "auto", "encoder"),
        ("timm/test_vit+fpn(channels=16)", "timm/test_vit", "upernet", "encoder"),  # the run's decoder is another
        ("smp/unet/tu-test_resnet", "smp/fpn/tu-test_resnet", "auto", "encoder"),
    ],
)
def test_the_start_on_auto_is_all_that_fits(
    run_of: str | None, model: str | None, decoder: str, expected: str, tmp_path: Path
) -> None:
    run = None if run_of is None else exported_run(tmp_path, run_of, image_size=64)
    source = source_of(run, model)
    with torch.device("meta"):
        _, target = build_segmenter(source, classes=2, decoder=decoder)  # type: ignore[arg-type]
    assert chosen_starts(["auto"], source, target=target) == (expected,)
    assert chosen_starts(["random", "auto", "random"], source, target=target)[0] == "random"
    if run_of is not None and "+" in run_of and expected == "encoder":
        with pytest.raises(DovetailError, match=r"has another decoder than the run .*; use --start encoder"):
            chosen_starts(["all"], source, target=target)
    if run_of == "timm/test_resnet":
        assert chosen_starts(["all"], source, target=target) == ("all",)  # all there is
        with pytest.raises(DovetailError, match="no pre-trained decoder"):
            chosen_starts(["decoder"], source, target=target)
    if run is None:
        with pytest.raises(DovetailError, match="or use --start random"):
            chosen_starts(["all"], source, target=target)


def test_a_model_without_a_run_is_fine_tuned_from_random_weights(masks: Path, tmp_path: Path) -> None:
    results = dovetail.finetune_segment(
        model="timm/test_resnet+fcn(channels=16)", data=masks, out=tmp_path, steps=1, batch_size=2, crop_size=32, **FAST
    )
    assert results is not None
    assert results.rows[0].setting["start"] == "random"


def test_a_classifier_does_not_start_from_a_decoder(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="A classifier has no decoder"):
        dovetail.finetune_classify(
            run=run, data=class_folder(tmp_path), out=tmp_path / "o", start=["decoder"], steps=1, **FAST
        )


def test_dilation_gives_the_stride(tmp_path: Path) -> None:
    source = source_of(None, "timm/resnet18+fcn")
    for stride in (32, 16, 8):
        model, _ = build_segmenter(source, classes=2, output_stride=stride)
        with torch.no_grad():
            assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 2, 64 // stride, 64 // stride)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--start", "nothing"], "There is no start 'nothing'"),
        (["--fraction", "2"], "fraction is 2"),
        (["--seeds", "0"], "seeds is 0"),
        (["--classes", "2"], "contains label 2"),
        (["--decoder", "upernet"], "does not support"),
        (["--crop-size", "4"], "crop_size is 4"),
    ],
)
def test_mistakes_get_one_sentence(
    options: list[str], sentence: str, masks: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--run", str(run), "--data", str(masks), "--out", str(tmp_path), "--accelerator", "cpu", *options]
    assert run_command(["finetune", "segment", *given]) == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.count("\n") == 1


def test_ignored_labels_count_neither_in_training_nor_in_scores(tmp_path: Path) -> None:
    data = mask_folder(tmp_path / "data", images=5)
    options: dict[str, Any] = {"model": "timm/test_resnet", "data": data, "steps": 2, "batch_size": 2, **FAST}
    usual = dovetail.finetune_segment(out=tmp_path / "a", crop_size=64, **options)  # crops beyond the images are padded
    for path in (data / "masks").iterdir():
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels == 255, 77, labels).astype(np.uint8)).save(path)
    other = dovetail.finetune_segment(out=tmp_path / "b", crop_size=64, ignore_index=77, **options)
    assert usual is not None
    assert other is not None
    assert other.data["classes"] == 3
    assert usual.rows == other.rows


def test_a_decoder_that_was_not_trained_is_none(tmp_path: Path) -> None:
    run = exported_run(tmp_path, "timm/test_vit+fpn(channels=16)", image_size=64)
    info = json.loads((run / "exported" / "model.json").read_text())
    names = [name for name in dovetail.load(run).state_dict() if name.startswith("decoder.")]
    source = source_of(run, None)
    target = build_segmenter(source, classes=2)[1]
    assert chosen_starts(["auto", "decoder"], source, target=target) == ("all", "decoder")
    (run / "exported" / "model.json").write_text(json.dumps(info | {"untrained": names}))
    assert chosen_starts(["auto", "all"], source, target=target) == ("encoder", "all")
    with pytest.raises(DovetailError, match="no pre-trained decoder"):
        chosen_starts(["decoder"], source, target=target)


def test_a_fine_tuned_run_is_no_start(masks: Path, tmp_path: Path) -> None:
    dovetail.finetune_segment(model="timm/test_resnet", data=masks, out=tmp_path, steps=1, batch_size=2, **FAST)
    with pytest.raises(DovetailError, match="contains a fine-tuned model; specify its pre-training run"):
        dovetail.evaluate_knn(run=tmp_path, data=masks, out=tmp_path / "o")


def test_masks_are_read_for_their_classes_once_for_all_seeds(
    masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plain = MaskFiles.classes_in
    monkeypatch.setattr(MaskFiles, "classes_in", lambda self, index: asked.append(index) or plain(self, index))
    dovetail.finetune_segment(
        model="timm/test_resnet", data=masks, out=tmp_path, steps=1, batch_size=2, crop_size=32,
        fraction=[0.5], seeds=3, **FAST,
    )  # fmt: skip
    assert sorted(asked) == list(range(8))


def test_results_say_what_auto_meant(masks: Path, run: Path, tmp_path: Path) -> None:
    results = dovetail.finetune_segment(run=run, data=masks, out=tmp_path, steps=4, batch_size=2, crop_size=32, **FAST)
    assert results is not None
    found = results.config
    assert (found["resolved_steps"], found["resolved_warmup_steps"], found["resolved_precision"]) == (4, 0, "float32")
    assert "test_resnet" in found["resolved_model"]
    assert len(found["resolved_weights"]) == 12


def test_detection_of_masks_from_the_command_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_coco(tmp_path / "coco")
    out = tmp_path / "out"
    options = ["--run", str(run), "--data", str(data), "--out", str(out), "--task", "masks", "--steps", "1"]
    options += ["--batch-size", "2", "--image-size", "64", "--accelerator", "cpu", "--workers", "0"]
    options += ["--head-width", "0.125", "--proposals", "8"]
    assert run_command(["finetune", "detect", *options]) == 0
    content = json.loads((out / "results.json").read_text())
    assert content["rows"][0]["setting"]["start"] == "all"
    assert {"box AP", "box AP50", "box AP75", "mask AP"} <= set(content["rows"][0]["scores"])
    assert json.loads((out / "task.json").read_text())["options"]["ids"] == [17, 38]
    capsys.readouterr()
    assert run_command(["finetune", "detect", *options, "--check"]) == 2
    shown = capsys.readouterr()
    assert "no area" in shown.out
    assert "2 of 6 images have problems" in shown.err
    (data / "val2017" / "000000000002.png").unlink()
    assert run_command(["finetune", "detect", *options, "--check"]) == 2
    shown = capsys.readouterr()
    assert "000000000002.png is missing" in shown.out
    assert "no area" in shown.out
    assert "Missing 1 file, and 2 of 5 images have problems (listed above)" in shown.err


def test_detection_wants_a_coco_set(masks: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["finetune", "detect", "--run", str(run), "--data", str(masks), "--out", str(tmp_path)]) == 2
    assert "is not a COCO dataset" in capsys.readouterr().err
