"""A run among hundreds of malformed files: it finishes, every file that was skipped is named, nothing hangs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

import dovetail
from dovetail.data.isolated import run_isolated
from dovetail.data.loader import ViewDataset, ViewLoader, make_loader
from dovetail.data.open import open_source
from dovetail.data.order import StepSampler
from dovetail.data.reading.decode import UnreadableError, open_file
from dovetail.data.reading.skipped import SkippedLog
from dovetail.data.sources import ImageSource
from dovetail.errors import DovetailError
from dovetail.views.plan import ViewPlan, ViewSpec
from tests.data.fuzz import Corpus, encoded, make_corpus, smooth

PLAN = ViewPlan(views=(ViewSpec(size_px=16),))
NOBODY = 65534


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("fuzz") / "corpus")


def named(path: Path) -> set[str]:
    return {json.loads(line)["path"] for line in path.read_text(encoding="utf-8").splitlines()}


def unreadable(source: ImageSource) -> set[str]:
    """Return the names of what cannot be read, one after another in this process."""
    found = set()
    for index in range(source.num_images):
        try:
            source.open(index, 3).decode(1)
        except UnreadableError:
            found.add(source.name(index))
    return found


def test_the_corpus_is_large_and_reproducible(corpus: Corpus, tmp_path: Path) -> None:
    assert len(corpus.malformed) >= 400
    again = make_corpus(tmp_path / "again", whole=0)
    contents = [
        {os.fsencode(path.name): path.read_bytes() for path in one.malformed if not path.is_symlink()}
        for one in (corpus, again)
    ]
    assert contents[0] == contents[1]


def test_every_skipped_file_is_named_and_no_worker_dies(
    corpus: Corpus, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = open_source(corpus.folder)
    expected = unreadable(source)
    assert {os.fspath(path) for path in corpus.certain} <= expected
    assert not any("whole-" in path for path in expected)
    log = tmp_path / "skipped.jsonl"
    batch = 16
    loader = make_loader(
        source,
        PLAN,
        global_batch=batch,
        total_steps=source.num_images // batch,
        seed=0,
        num_workers=2,
        skipped_file=log,
    )
    asked = {index for one in loader for index in one.index.tolist()}
    left_out = {source.name(index) for index in set(range(source.num_images)) - asked}
    assert len(left_out) == source.num_images % batch
    assert expected - left_out <= named(log) <= expected
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_training_among_malformed_files_finishes(corpus: Corpus, tmp_path: Path) -> None:
    run = dovetail.pretrain(
        data=corpus.folder,
        model="timm/test_resnet+fpn(channels=16)",
        out=tmp_path,
        image_size=64,
        batch_size=16,
        epochs=1,
        workers=2,
        precision="32-true",
        report_every_minutes=0.0,
        recipe={"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8},
    )
    assert run.finished
    assert len(named(tmp_path / "skipped.jsonl")) > 200


@pytest.mark.parametrize("workers", [0, 1])
def test_files_may_go_and_change_during_the_run(tmp_path: Path, workers: int) -> None:
    """One is deleted, one becomes text, one a folder and one a pipe on which nobody writes."""
    paths = []
    for number in range(40):
        paths.append(tmp_path / f"{number:02}.jpg")
        Image.fromarray(smooth(24, 32, seed=number)).save(paths[-1])
    source = open_source(tmp_path)
    for path in paths[:4]:
        path.unlink()
    paths[1].write_text("no image")
    paths[2].mkdir()
    os.mkfifo(paths[3])
    dataset = ViewDataset(source, PLAN, seed=0, image_seconds=60.0)
    sampler = StepSampler(40, 8, seed=0, total_steps=5, start_step=0, rank=0, world_size=1, micro_batches=1)
    log = tmp_path / "skipped.jsonl"
    loader = ViewLoader(dataset, sampler, plan=PLAN, num_workers=workers, skipped=SkippedLog(log, 40))
    assert sum(len(batch) for batch in loader) == 40
    assert named(log) == {os.fspath(path) for path in paths[:4]}
    assert "it is not a regular file" in log.read_text()


@pytest.fixture
def damaged_tiff(tmp_path: Path) -> Path:
    content = bytearray(encoded(Image.fromarray(smooth()), "TIFF", compression="tiff_lzw"))
    content[200:400] = bytes(range(200))
    path = tmp_path / "damaged.tif"
    path.write_bytes(bytes(content))
    return path


def test_damaged_tiffs_leave_the_terminal_alone(damaged_tiff: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnreadableError):
        open_file(damaged_tiff, 3).decode(1)
    os.write(2, b"still there\n")
    assert capfd.readouterr().err == "still there\n"


@contextmanager
def without_privileges() -> Iterator[None]:
    """Let the permissions of files count, which root may pass over."""
    if os.geteuid() != 0:
        yield
        return
    # What processes need is imported where it may lie in root's own folder.
    run_isolated(lambda: torch.ones(1), seconds=60)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_files_without_permission_are_named(workers: int) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are for one user alone
        folder = Path(name)
        for number in range(8):
            Image.fromarray(smooth(24, 32, seed=number)).save(folder / f"{number}.jpg")
        (folder / "0.jpg").chmod(0)
        (folder / "run").mkdir(mode=0o777)
        folder.chmod(0o755)
        (folder / "run").chmod(0o777)
        log = folder / "run" / "skipped.jsonl"
        with without_privileges():
            loader = make_loader(
                open_source(folder), PLAN, global_batch=4, total_steps=2, seed=0, num_workers=workers, skipped_file=log
            )
            assert sum(len(batch) for batch in loader) == 8
        reasons = {json.loads(line)["path"]: json.loads(line)["reason"] for line in log.read_text().splitlines()}
        assert reasons == {str(folder / "0.jpg"): "Permission denied"}


def test_a_folder_without_permission_gets_a_sentence() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "closed").mkdir(mode=0)
        Image.fromarray(smooth()).save(folder / "open.jpg")
        with without_privileges(), pytest.raises(DovetailError, match=r"closed' cannot be read \(Permission denied\)"):
            open_source(folder)


def test_views_of_the_whole_files_are_as_without_the_others(corpus: Corpus) -> None:
    """A skipped file changes nothing but its own place in the batch."""
    source = open_source(corpus.folder)
    index = next(index for index in range(source.num_images) if "whole-" in source.name(index))
    first, second = (ViewDataset(source, PLAN, seed=1)[(0, index)] for _ in range(2))
    assert first.used == index
    assert torch.equal(first.crops[0], second.crops[0])
