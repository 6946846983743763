"""The run's page: whole, escaped, offline, and no danger to a run."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dovetail
from dovetail.data.reading.decode import LazyImage
from dovetail.data.sources import PathSource
from dovetail.report.page import PAGE, Page
from tests.report.conftest import HOSTILE, pretrained

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(HTMLParser):
    """Checks nesting, and gathers ids, attributes that load something, headings and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "srcset") and value:
                self.loads.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(run: Path) -> Outline:
    parser = Outline()
    parser.feed((run / PAGE).read_text(encoding="utf-8"))
    parser.close()
    return parser


@pytest.fixture(params=["slot_run", "query_run"])
def run(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def test_the_page_is_well_formed_and_small(run: Path) -> None:
    page = outline(run)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert (run / PAGE).stat().st_size < 3_000_000
    last = "slots" if "SlotCon" in "".join(page.text) else "attention"
    for section in ("run", "health", "curves", "views", "maps", last, "load", "all"):
        assert section in page.ids
    anchors = {load.removeprefix("#") for load in page.loads if load.startswith("#")}
    assert anchors <= set(page.ids)


def test_the_page_loads_nothing_from_elsewhere(run: Path) -> None:
    page = outline(run)
    assert page.loads
    assert all(load.startswith(("#", "data:image/")) for load in page.loads)
    text = (run / PAGE).read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "default-src 'none'" in text


def test_maps_of_a_frozen_encoder_are_shown_once_with_the_reason(photos: Path, tmp_path: Path) -> None:
    dovetail.pretrain(
        data=photos,
        model="timm/test_resnet+fpn(channels=16)",
        method="encoder-targets",
        freeze_encoder_epochs="all",
        image_size=32,
        batch_size=4,
        max_steps=2,
        workers=0,
        out=tmp_path,
    )
    found = outline(tmp_path)
    captions = [text for text in found.text if "of the variance" in text]
    assert len(captions) == 3  # one of the encoder, two of the decoder
    assert captions[0].startswith(
        "Before and after step 2, unchanged because the encoder is frozen; the three components explain"
    )
    assert captions[1].startswith("Before; ")
    assert captions[2].startswith("After step 2; ")


def test_hostile_names_are_text(slot_run: Path) -> None:
    page = outline(slot_run)
    assert page.tags.count("script") == 1
    assert page.tags.count("b") == 0
    raw = (slot_run / PAGE).read_text(encoding="utf-8")
    assert "<script>alert" not in raw


def test_every_hostile_name_comes_out_as_it_is(photos: Path, slot_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dovetail.data.sources import PathSource
    from dovetail.report import page as module
    from dovetail.run.restored import restore

    restored = restore(slot_run)
    source = PathSource([photos / name for name in HOSTILE])
    options = restored.options.changed(data=HOSTILE[0])
    subject = module.Subject(slot_run, options, restored.recipe, "a < b", source, 2, "print('<i>')", "dovetail <b>")
    text = Page.prepare(subject, restored.before).render({}, restored.after, state="running")
    parser = Outline()
    parser.feed(text)
    said = "".join(parser.text)
    assert all(name in said for name in HOSTILE)
    assert "print('<i>')" in said
    assert "dovetail <b>" in said
    assert parser.tags.count("script") == 1
    assert parser.tags.count("i") == 0


def test_the_page_tells_what_was_run(slot_run: Path) -> None:
    text = " ".join("".join(outline(slot_run).text).split())
    for words in (
        *(
            "decon-sl on timm/test_resnet+fpn(channels=16)",
            "Finished",
            "step 2 of 2",
            "9 images, none unreadable",
            "2 global of 64 px",
        ),
        *("encoder on c5, decoder_p2 on p2", "torch 2.", "load_into", "prototypes=6", "Term decoder_p2 (unweighted)"),
        *("optimiser steps", "images per second", "Encoder, tap c5", "Decoder, tap p2", "Before", "SlotCon (terms"),
    ):
        assert words in text, words
    command = r"dovetail finetune segment --run \S+/slots\.tmp --data LABELLED --start random all"  # made there
    assert re.search(command, text)


def test_queries_are_drawn_on_their_source(query_run: Path) -> None:
    text = " ".join("".join(outline(query_run).text).split())
    assert "are query crops" in text
    assert "3 query crops of 16 px" in text
    assert "q3" in text


@pytest.mark.parametrize(
    ("which", "taps", "others"),
    [
        ("slot_run", ("c5", "p2"), {"slots/encoder", "slots/decoder_p2"}),
        ("query_run", ("c4",), {"attention/cls", "attention/queries"}),
    ],
)
def test_tensorboard_gets_the_page_s_pictures(
    which: str, taps: tuple[str, ...], others: set[str], request: pytest.FixtureRequest
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(request.getfixturevalue(which) / "tensorboard"))
    events.Reload()
    maps = {f"pca/{tap}/{when}" for tap in taps for when in ("before", "after")}
    assert set(events.Tags()["images"]) == {*maps, *others, "views"}
    shown = events.Images("views")[0]
    assert shown.width > 300


class Hanging(PathSource):
    """Images on a disk that does not answer."""

    def open(self, index: int, channels: int) -> LazyImage:
        time.sleep(600)
        return super().open(index, channels)


def test_photographs_that_hang_leave_the_page_without_pictures(
    photos: Path, slot_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dovetail.report import page as module
    from dovetail.run.restored import restore

    monkeypatch.setattr(module, "SAMPLE_SECONDS", 0.5)
    restored = restore(slot_run)
    source = Hanging([photos / "plain.jpg", photos / "plain.jpg"])
    subject = module.Subject(slot_run, restored.options, restored.recipe, "recipe", source, 2, "load", "measure")
    page = Page.prepare(subject, restored.before)
    assert "has no images: reading took more than 0.5 seconds" in caplog.text
    assert page.examples == page.images == []
    assert "step 2 of 2" in " ".join(page.render({}, restored.after, state="running").split())
    stopped = page.render({}, restored.after, state="stopped", step=1)  # between two readings
    assert "step 1 of 2" in " ".join(stopped.split())
    assert "none unreadable so far</dd>" in stopped
    assert "none unreadable</dd>" in page.render({}, restored.after, state="finished")


def test_the_page_is_written_while_a_run_goes_and_a_failure_stops_no_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[str] = []

    def fail(*_: Any, state: str, **__: Any) -> None:
        states.append(state)
        raise RuntimeError("no ink")

    monkeypatch.setattr(Page, "render", fail)
    pretrained(photos, tmp_path)
    assert states == ["running", "finished"]
    assert not (tmp_path / PAGE).exists()
    assert "page cannot be written (RuntimeError: no ink)" in (tmp_path / "train.log").read_text(encoding="utf-8")
    assert (tmp_path / "exported").is_dir()


def test_no_page_where_none_is_wanted_and_the_same_weights(photos: Path, slot_run: Path, tmp_path: Path) -> None:
    pretrained(photos, tmp_path, report_every_minutes=0)
    assert not (tmp_path / PAGE).exists()
    with_page, without = (load_file(folder / "exported" / "model.safetensors") for folder in (slot_run, tmp_path))
    assert all(torch.equal(value, without[name]) for name, value in with_page.items())
