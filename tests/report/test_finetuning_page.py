"""The page of a fine-tuning, and its results in the page of its run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dovetail
from dovetail.report.page import PAGE
from tests.downstream.coco_files import write_coco
from tests.downstream.pictures import class_folder, exported_run
from tests.downstream.test_finetune import mask_folder

PLACES = "".join(f"<!-- {name} --><!-- end of {name} -->" for name in ("results link", "results"))
FAST = {"accelerator": "cpu", "precision": "float32", "workers": 0, "batch_size": 2}


def test_pages_show_sentences_table_curves_and_test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = exported_run(tmp_path / "run", "timm/test_resnet+fpn(channels=16)", image_size=64)
    (run / PAGE).write_text(f"<main>{PLACES}</main>")
    data = mask_folder(tmp_path / "masks", images=10)
    asked = {"run": run, "data": data, "crop_size": 32, "start": ["random", "all"], "seeds": 3, **FAST}
    found = dovetail.finetune_segment(steps=20, **asked)
    assert found is not None
    page, of_run = (run / "finetune-segment" / PAGE).read_text(), (run / PAGE).read_text()
    told = capsys.readouterr().out
    assert f"Results, curves and some test images: {run / 'finetune-segment' / PAGE} and {run / PAGE}\n" in told
    for text in (page, of_run):
        for note in found.notes:
            assert note.replace("'", "&#39;") in text
        assert text.count('src="data:image/jpeg') == 2  # as many test images as there are
        assert "image, mask, prediction" in text
        assert f"{100 * found.rows[0].scores['mIoU'].mean:.2f}" in text
        assert "http:" not in text
        assert "https:" not in text
    assert re.findall(r"<figcaption>(Loss|mIoU on)", page) == ["Loss", "mIoU on"]
    assert 'href="./finetune-segment/report.html"' in of_run
    dovetail.finetune_segment(steps=20, **asked)
    again = (run / PAGE).read_text()
    assert again.count("<section") == of_run.count("<section") == 1
    dovetail.finetune_segment(steps=1, out=run / "other out", **(asked | {"start": ["all"], "seeds": 1}))
    assert (run / PAGE).read_text().count("<section") == 2
    assert 'href="./other%20out/report.html"' in (run / PAGE).read_text()


def test_a_run_without_a_place_for_results_keeps_its_page(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", image_size=64)
    (run / PAGE).write_text("an older page")
    dovetail.finetune_classify(run=run, data=class_folder(tmp_path / "set"), steps=1, **FAST)
    assert (run / PAGE).read_text() == "an older page"
    page = (run / "finetune-classify" / PAGE).read_text()
    assert re.search(r"<figcaption>\w+, predicted as \w+</figcaption>", page)
    assert 'id="curves"' in page  # the loss; there are too few steps for scores along the way


@pytest.mark.slow
def test_detection_shows_boxes(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", "timm/test_resnet+fpn(channels=16)", image_size=64)
    small = {"image_size": 64, "head_width": 0.125, "proposals": 8}
    dovetail.finetune_detect(run=run, data=write_coco(tmp_path / "coco"), steps=1, **small, **FAST)
    page = (run / "finetune-detect" / PAGE).read_text()
    assert re.search(r"\d+ annotated \(green\), (\d+|none) found with a score of 0.5 or more \(orange\)", page)


def test_the_page_of_a_run_has_a_place_for_results() -> None:
    template = Path(dovetail.__file__).parent / "report" / "templates" / "report.html.j2"
    text = template.read_text()
    assert "<!-- results link --><!-- end of results link -->" in text
    assert "<!-- results --><!-- end of results -->" in text
