"""A run on a streaming dataset: its images are written to the run folder once, and read from there."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.data import IterableDataset

import dovetail
from dovetail.cli import run as run_command
from dovetail.data.open import open_source
from dovetail.data.shards.names import SIZES
from dovetail.errors import DataError, ResourceError, RunError
from dovetail.run import stream
from dovetail.run.folder import STREAM, check_out, empty
from dovetail.run.options import PretrainOptions
from dovetail.run.stream import stored, wait_for
from tests.data.tars import jpeg


class Stream(IterableDataset[Any]):
    """Images that may be read only once. Without a number, they never end."""

    def __init__(self, count: int | None = None) -> None:
        self.count, self.used = count, False

    def __iter__(self) -> Iterator[Any]:
        assert not self.used, "the stream is read again"
        self.used = True
        number = 0
        while self.count is None or number < self.count:
            yield {"image": jpeg(number), "label": 0}
            number += 1


class Broken(IterableDataset[Any]):
    """A stream that fails after one shard."""

    def __iter__(self) -> Iterator[Any]:
        yield from (jpeg(number) for number in range(stream.IMAGES_PER_SHARD))
        raise ConnectionError("reset by peer")


def options(data: Any, **more: Any) -> PretrainOptions:
    return PretrainOptions(data=data, **more)


def files_in(folder: Path) -> list[bytes]:
    source = open_source(folder)
    return sorted(source.encoded(index) for index in range(source.num_images))


def test_a_stream_is_read_once_whatever_follows(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, once = tmp_path / "run", Stream(9)
    (out / STREAM).mkdir(parents=True)  # of a run that was killed while it wrote
    (out / STREAM / "shard-000000.tar").write_bytes(b"old")
    (out / STREAM / "shard-000001.tmp").write_bytes(b"half")
    pretrain(data=once, out=out, max_steps=None, epochs=1)
    told = capsys.readouterr().out
    assert f"Writing the images of the streaming dataset to {out / STREAM}, until its end." in told
    assert "9 images so far" in told
    assert files_in(out / STREAM) == sorted(jpeg(number) for number in range(9))
    assert yaml.safe_load((out / "config.yaml").read_text())["data"] == str(out / STREAM)
    assert pretrain(data=once, out=out, resume=True, max_steps=None, epochs=1).finished
    out.rename(tmp_path / "moved")
    assert run_command(["pretrain", "--out", str(tmp_path / "moved"), "--resume", "--epochs", "2"]) == 0
    assert yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())["data"] == str(tmp_path / "moved" / STREAM)


def test_options_are_checked_before_the_stream_is_read(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"recipe": {"nope": 1}}, "'nope'"),
        ({"model": "timm/nothing"}, "nothing"),
        ({"image_size": 65}, "65"),
        ({"method": "detcon"}, "needs masks beside the images"),
    ]
    for given, message in wrong:
        once = Stream()
        with pytest.raises(dovetail.DovetailError, match=message):
            pretrain(data=once, out=tmp_path / "run", **given)
        assert not once.used
    with pytest.raises(dovetail.DovetailError, match="fewer than the 64 of one step"):
        pretrain(data=Stream(9), out=tmp_path / "run", batch_size=64)
    assert len(files_in(tmp_path / "run" / STREAM)) == 9
    with pytest.raises(RunError, match="already contains the images of a stream"):
        pretrain(data=Stream(9), out=tmp_path / "run")


def test_an_endless_stream_is_read_as_far_as_the_steps_need(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(data=Stream(), out=tmp_path / "run", max_steps=1)
    assert "or up to the 4 images that the run uses" in capsys.readouterr().out
    assert len(files_in(tmp_path / "run" / STREAM)) == 4


def test_an_endless_stream_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "RESERVE_BYTES", 1 << 62)
    with pytest.raises(ResourceError, match=r"after 1,000 images of the stream; free disk space, or limit .*\.take\("):
        stored(options(Stream()), tmp_path, most=None, first=True)
    assert not (tmp_path / STREAM).exists()


def test_a_stream_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="failed after 1,000 items"):
        stored(options(Broken()), tmp_path, most=None, first=True)
    assert not (tmp_path / STREAM).exists()


def test_a_stream_is_replaced_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(options(Stream(2)), tmp_path, most=None, first=True)
    with pytest.raises(RunError, match=r"specify data='.*stream' to train on them, or add overwrite=True"):
        stored(options(Stream(3)), tmp_path, most=None, first=True)
    assert len(files_in(tmp_path / STREAM)) == 2
    stored(options(Stream(3)), tmp_path, most=None, first=True, requeued=True)  # it is the same command
    assert len(files_in(tmp_path / STREAM)) == 2
    (tmp_path / "metrics.jsonl").write_text("")
    found = stored(options(Stream(3), overwrite=True), tmp_path, most=None, first=True)
    assert len(files_in(found.data)) == 3
    assert not found.overwrite, "the images would be removed with the old run"
    assert [entry.name for entry in tmp_path.iterdir()] == [STREAM]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="cannot be replaced by several processes"):
        stored(options(Stream(4), overwrite=True), tmp_path, most=None, first=True)


def test_other_processes_wait_for_the_images(tmp_path: Path) -> None:
    def write() -> None:
        stored(options(Stream(2)), tmp_path, most=None, first=True)

    first = threading.Timer(0.2, write)
    first.start()
    found = stored(options(Stream()), tmp_path, most=None, first=False)
    first.join()
    assert len(files_in(found.data)) == 2
    (tmp_path / STREAM / SIZES).unlink()
    with pytest.raises(RunError, match="check its output, and that all nodes share this folder"):
        wait_for(tmp_path, patience_s=0, pause_s=0.01)


def test_resuming_another_run_with_a_stream(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    pretrain(out=tmp_path, max_steps=1)
    with pytest.raises(RunError, match="was not started from a streaming dataset"):
        dovetail.pretrain(out=tmp_path, data=Stream(12), resume=True)


def test_only_the_shards_of_a_stream_are_a_leftover(tmp_path: Path) -> None:
    stored(options(Stream(2)), tmp_path, most=None, first=True)
    assert check_out(tmp_path, overwrite=False, resume=False) == tmp_path
    empty(tmp_path, keep={STREAM})
    assert len(files_in(tmp_path / STREAM)) == 2
    (tmp_path / STREAM / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not empty"):
        check_out(tmp_path, overwrite=False, resume=False)
    shutil.rmtree(tmp_path / STREAM)
    (tmp_path / STREAM).write_text("")
    with pytest.raises(RunError, match="not empty"):
        check_out(tmp_path, overwrite=False, resume=False)


def test_show_assumes_a_number_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    once = Stream()
    dovetail.show("decon-sl", model="timm/test_resnet+fpn(channels=16)", data=once)
    assert "Assuming 1,000 images, because a streaming dataset does not say how many." in capsys.readouterr().out
    assert not once.used
