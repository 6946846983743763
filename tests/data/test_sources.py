from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dovetail.cli import run as run_command
from dovetail.data.identity import difference, identity_of
from dovetail.data.open import open_source
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.shards.write import write_shards
from dovetail.data.sources import DatasetSource, PathSource
from dovetail.errors import DovetailError
from tests.data.photos import folder_of, smooth


def names(source: object) -> list[str]:
    assert isinstance(source, PathSource)
    return [Path(source.name(index)).name for index in range(source.num_images)]


def test_folder_is_searched_recursively_and_sorted(tmp_path: Path) -> None:
    folder_of(tmp_path / "b", 2)
    folder_of(tmp_path / "a" / "deep", 1)
    folder_of(tmp_path / ".hidden", 1)
    (tmp_path / "a" / ".000.jpg").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("text")
    source = open_source(tmp_path)
    assert names(source) == ["000.jpg", "000.jpg", "001.jpg"]
    assert source.name(0) == str(tmp_path / "a" / "deep" / "000.jpg")
    assert source.open(0, 3).decode(1).shape == (3, 40, 60)


def test_content_counts_where_the_name_does_not_tell(tmp_path: Path) -> None:
    photo = folder_of(tmp_path, 1) / "000.jpg"
    (tmp_path / "scan.dat").write_bytes(photo.read_bytes())
    (tmp_path / "plain").write_bytes(photo.read_bytes())
    (tmp_path / "table.csv").write_text("1,2")
    (tmp_path / "broken.png").touch()
    assert names(open_source(str(tmp_path))) == ["000.jpg", "broken.png", "plain", "scan.dat"]


def test_files_that_are_not_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "photos", 2)
    for number in range(3):
        (tmp_path / "photos" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "photos" / "raw.nef").write_bytes(b"raw")
    assert open_source(tmp_path).left_out == "Skipped 3 .heic files and 1 .nef file (not supported as images)."
    assert run_command(["prepare", "--data", str(tmp_path / "photos"), "--shards", str(tmp_path / "shards")]) == 0
    assert "Skipped 3 .heic files and 1 .nef file" in capsys.readouterr().out
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in (tmp_path / "photos").iterdir():
            packed.write(path, path.name)
    assert "3 .heic files" in open_source(archive).left_out
    assert open_source(tmp_path / "shards").left_out == ""


@pytest.mark.parametrize(
    ("name", "kind"), [("a.avif", "AVIF"), ("a.jp2", "JPEG2000"), ("a.ppm", "PPM"), ("a.pgm", "PPM")]
)
def test_formats_that_pillow_reads_are_read(name: str, kind: str, tmp_path: Path) -> None:
    image = Image.fromarray(smooth())
    (image.convert("L") if name == "a.pgm" else image).save(tmp_path / name, kind)
    source = open_source(tmp_path)
    assert names(source) == [name]
    pixels = source.open(0, 3).decode(1).float()
    expected = torch.from_numpy(np.array(image.convert("L").convert("RGB") if name == "a.pgm" else image))
    assert (pixels - expected.permute(2, 0, 1)).abs().mean() < 4
    (tmp_path / name).rename(tmp_path / "plain")
    assert kind == "PPM" or open_source(tmp_path).num_images == 1
    (tmp_path / "plain").rename(tmp_path / name)
    assert write_shards(source, tmp_path / "shards", images_per_shard=2).left_out == ()
    assert open_source(tmp_path / "shards").num_images == 1


def test_links(tmp_path: Path) -> None:
    folder_of(tmp_path / "photos", 1)
    (tmp_path / "photos" / "loop").symlink_to(tmp_path)
    (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos" / "self")
    (tmp_path / "photos" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "photos" / "twin.jpg").symlink_to(tmp_path / "photos" / "000.jpg")
    assert names(open_source(tmp_path)) == ["000.jpg", "gone.jpg", "twin.jpg"]


def test_pipes_are_left_alone(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    assert names(open_source(tmp_path)) == ["000.jpg"]


def test_odd_names(tmp_path: Path) -> None:
    content = (folder_of(tmp_path / "a", 1) / "000.jpg").read_bytes()
    for name in (b"line\nbreak.jpg", b"\xff\xfe.jpg", "grün 猫.jpg".encode()):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(content)  # noqa: PTH118
    source = open_source(tmp_path)
    assert source.num_images == 4
    assert all(source.open(index, 3).width_px == 60 for index in range(4))


def test_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "README", "x/y.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "z").mkdir()
    with pytest.raises(DovetailError, match=r"Found 3 \.txt files, 1 file, 1 \.csv file and 2 folders but no images"):
        open_source(tmp_path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="Found nothing but no images"):
        open_source(tmp_path)


def test_missing_folder_says_what_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        DovetailError, match=r"no folder, archive or list of images at .*photo'; did you mean '.*photos'"
    ):
        open_source(tmp_path / "photo")
    with pytest.raises(DovetailError, match="contains photos"):
        open_source(tmp_path / "nowhere" / "photo")


def test_list_of_paths(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", 2)
    listing = tmp_path / "list.txt"
    listing.write_text(f"a/001.jpg\r\n\n{folder / '000.jpg'}\n")
    source = open_source(listing)
    assert names(source) == ["001.jpg", "000.jpg"]
    assert all(source.open(index, 3).width_px == 60 for index in range(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "is empty"), (b"\0\1", "is not a text file"), (b"\xff\xd8\xff\xe0", "is a single image")],
)
def test_list_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(DovetailError, match=message):
        open_source(tmp_path / "list")


def test_list_of_windows(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", 2)
    (tmp_path / "a" / "000.jpg").rename(tmp_path / "odd\\name.jpg")
    (tmp_path / "list.txt").write_bytes(b"a\\001.jpg\r\nodd\\name.jpg\r\n")
    source = open_source(tmp_path / "list.txt")
    assert [source.open(index, 3).width_px for index in range(2)] == [60, 60]


def test_sequence_of_paths(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 2)
    assert names(open_source([folder / "001.jpg", str(folder / "000.jpg")])) == ["001.jpg", "000.jpg"]
    with pytest.raises(DovetailError, match="The list of images is empty"):
        open_source([])


class Items(Dataset[object]):
    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def test_dataset_of_anything_that_is_an_image() -> None:
    array = smooth()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    mappings = [
        {"label": 3, "image": array},
        {"pixel_values": tensor},
        {"image": {"bytes": file.getvalue(), "path": None}},
    ]
    items = [
        array,
        Image.fromarray(array),
        (array, 3),
        tensor,
        tensor / 255,
        [tensor, "label"],
        file.getvalue(),
        *mappings,
    ]
    source = open_source(Items(items))
    assert isinstance(source, DatasetSource)
    for index in range(source.num_images):
        assert source.open(index, 3).decode(1).equal(tensor)
    assert source.name(1) == "Items[1]"


def test_dataset_with_bad_items() -> None:
    class Broken(Items):
        def __getitem__(self, index: int) -> object:
            raise KeyError(index)

    for dataset in (Broken([1]), Items(["text"]), Items([()]), Items([np.zeros(3)]), Items([{"x": 1}])):
        with pytest.raises(UnreadableError):
            open_source(dataset).open(0, 3)


def test_dataset_without_a_length() -> None:
    class Endless(IterableDataset[object]):
        def __iter__(self) -> Iterator[object]:
            yield from ()

    with pytest.raises(DovetailError, match="map-style"):
        open_source(Endless())


def test_the_dataset_of_a_data_loader() -> None:
    source = open_source(DataLoader(Items([smooth(), smooth()]), batch_size=2))
    assert isinstance(source, DatasetSource)
    assert source.num_images == 2


@pytest.mark.parametrize("shape", [(5, 7, 12), (5, 7, 3), (5, 7)])
def test_a_dataset_is_written_to_shards_with_all_bits(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    deep = Image.fromarray(array) if len(shape) == 2 else array
    assert np.array_equal(np.load(io.BytesIO(open_source([deep, array]).encoded(0))), array)
    write_shards(open_source([deep]), tmp_path, images_per_shard=1)
    assert np.array_equal(np.load(io.BytesIO(open_source(tmp_path).encoded(0))), array)
    for image in (Image.fromarray(smooth()), Image.fromarray(smooth()).convert("LA")):
        assert Image.open(io.BytesIO(open_source([image]).encoded(0))).convert(image.mode).tobytes() == image.tobytes()


def test_several_folders_archives_and_images(tmp_path: Path) -> None:
    one, other = folder_of(tmp_path / "one", 2), folder_of(tmp_path / "other", 3)
    (other / "notes.txt").write_text("text")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as packed:
        packed.write(one / "000.jpg", "far.jpg")
    source = open_source([str(one), other, tmp_path / "more.zip", one / "001.jpg"])
    assert [Path(source.name(index)).name for index in range(source.num_images)] == [
        *("000.jpg", "001.jpg", "000.jpg", "001.jpg", "002.jpg", "far.jpg", "001.jpg")
    ]
    assert [Path(source.name(index)).parent.name for index in (1, 2, 5)] == ["one", "other", "more.zip"]
    for index in range(source.num_images):
        assert source.open(index, 3).decode(1).shape == (3, 40, 60)
        assert source.encoded(index)[:2] == b"\xff\xd8"
    assert source.left_out == "Skipped 1 .txt file (not supported as images)."
    assert sorted(source.order(seed=0, epoch=0)[0:7]) == list(range(7))
    before = identity_of(source)
    assert before["names"] is not None
    (tmp_path / "far").mkdir()
    moved = other.rename(tmp_path / "far" / "moved")
    assert identity_of(open_source([one, moved, tmp_path / "more.zip", one / "001.jpg"])) == before
    assert difference(before, identity_of(open_source([moved, one, tmp_path / "more.zip", one / "001.jpg"])))
    assert isinstance(open_source([one]), PathSource)
    with pytest.raises(DovetailError, match="its images would count twice"):
        open_source([tmp_path, one])
    with pytest.raises(DovetailError, match="Found no folder, archive or list of images"):
        open_source([one, tmp_path / "nowhere.tar"])
    write_shards(open_source(one), tmp_path / "shards", images_per_shard=1)
    with pytest.raises(DovetailError, match="cannot be combined"):
        open_source([one, tmp_path / "shards"])
