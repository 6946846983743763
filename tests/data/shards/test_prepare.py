"""`prepare`: images become shards, whole and always the same."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovetail.cli import run
from dovetail.data.open import open_source
from dovetail.data.shards.prepare import prepare
from dovetail.errors import DovetailError
from tests.data.photos import folder_of, smooth


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven JPEGs, a PNG with a name that would end its key, and a file that is no image."""
    folder = folder_of(tmp_path / "photos", 7)
    Image.fromarray(smooth(seed=7)).save(folder / "a.b c.png")
    (folder / "broken.jpg").write_bytes(b"words")
    return folder


def test_shards_hold_the_very_bytes_of_every_photograph(photos: Path, tmp_path: Path) -> None:
    written = prepare(data=photos, shards=tmp_path / "shards", images_per_shard=3)
    assert written.sizes == {"shard-000000.tar": 3, "shard-000001.tar": 3, "shard-000002.tar": 2}
    assert json.loads((tmp_path / "shards" / "sizes.json").read_text()) == written.sizes
    assert [Path(name).name for name, _ in written.left_out] == ["broken.jpg"]
    source = open_source(tmp_path / "shards")
    bytes_in = {source.encoded(index) for index in range(source.num_images)}
    assert bytes_in == {path.read_bytes() for path in photos.iterdir() if path.name != "broken.jpg"}
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as tar:
        assert all(name.count(".") == 1 for name in tar.getnames())


def test_equal_photographs_give_equal_shards_in_a_random_order(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        prepare(data=photos, shards=tmp_path / name, images_per_shard=8, seed=seed)
    one, two, three = ((tmp_path / name / "shard-000000.tar").read_bytes() for name in ("one", "two", "three"))
    assert one == two
    assert one != three
    with tarfile.open(tmp_path / "one" / "shard-000000.tar") as tar:
        assert tar.getnames() != sorted(tar.getnames())


def test_datasets_of_arrays_are_written_too(tmp_path: Path) -> None:
    arrays = [smooth(seed=seed) for seed in range(3)]
    prepare(data=arrays, shards=tmp_path / "shards")
    source = open_source(tmp_path / "shards")
    back = sorted(source.open(index, 3).decode(1).numpy().sum() for index in range(3))
    assert back == sorted(array.sum() for array in arrays)


def test_a_folder_is_not_emptied_of_anything_else(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    prepare(data=photos, shards=out)
    with pytest.raises(DovetailError, match="already contains shards; add --overwrite"):
        prepare(data=photos, shards=out)
    prepare(data=photos, shards=out, images_per_shard=4, overwrite=True)
    assert len(list(out.glob("*.tar"))) == 2
    with pytest.raises(DovetailError, match="--shards is the folder of the images"):
        prepare(data=out, shards=out, overwrite=True)
    (out / "mine.txt").touch()
    with pytest.raises(DovetailError, match=r"other files, such as 'mine.txt'"):
        prepare(data=photos, shards=out, overwrite=True)
    assert len(list(out.glob("*.tar"))) == 2


def test_old_shards_stay_until_the_photographs_are_found(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(data=photos, shards="shards", images_per_shard=4)
    before = {path: path.read_bytes() for path in Path("shards").iterdir()}
    with pytest.raises(DovetailError, match="Found no folder"):
        prepare(data="fotos", shards="shards", overwrite=True)
    Path("one.tar").symlink_to("shards/shard-000000.tar")
    inside = tmp_path / "shards" / "shard-000001.tar"
    for data in ("shards/shard-{000000..000001}.tar", inside, f"file://{inside}", "one.tar", open_source("shards")):
        with pytest.raises(DovetailError, match=r"shard-00000\d\.tar would be replaced"):
            prepare(data=data, shards=tmp_path / "shards", overwrite=True)
    assert before == {path: path.read_bytes() for path in Path("shards").iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": "s"}, "--data is missing"),
        ({"data": "photos"}, "--shards is missing"),
        ({"data": "photos", "shards": "s", "images_per_shard": 0}, "must be at least 1"),
        ({"data": "photos", "shards": "photos/a.b c.png"}, "is a file"),
    ],
)
def test_mistakes_get_a_sentence(
    options: dict[str, object], message: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    with pytest.raises(DovetailError, match=message):
        prepare(**options)  # type: ignore[arg-type]


def test_nothing_readable_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"words")
    with pytest.raises(DovetailError, match="None of 1 images can be read"):
        prepare(data=[tmp_path / "a.jpg"], shards=tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


@pytest.mark.slow
def test_shards_train_from_the_command_line(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["prepare", "--data", "photos", "--shards", "shards", "--images-per-shard", "3"]) == 0
    command = "pretrain --data shards --model timm/test_resnet --method densecl --out run --max-steps 2 --batch-size 4"
    small = "--image-size 32 --workers 0 --accelerator cpu --report-every-minutes 0 --recipe.queue 8 --recipe.hidden 8"
    assert run([*command.split(), *small.split()]) == 0
    assert (tmp_path / "run" / "exported").is_dir()
    assert np.isfinite(json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
