from __future__ import annotations

import json
from pathlib import Path

import pytest

from dovetail.data.shards import names as shard_names
from dovetail.data.shards.names import expand, names_shards, read_sizes
from dovetail.errors import DovetailError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{0..2}.tar", ["a-0.tar", "a-1.tar", "a-2.tar"]),
        ("a-{2..0}.tar", ["a-2.tar", "a-1.tar", "a-0.tar"]),
        ("{x,y}/{08..10}.tar", ["x/08.tar", "x/09.tar", "x/10.tar", "y/08.tar", "y/09.tar", "y/10.tar"]),
        ("{a,b{1,2}}{,.z}.tar", ["a.tar", "a.z.tar", "b1.tar", "b1.z.tar", "b2.tar", "b2.z.tar"]),
        ("${HOME}/{0,1}.tar", ["${HOME}/0.tar", "${HOME}/1.tar"]),
        ("{print $1}.tar", ["{print $1}.tar"]),
        ("a{.tar", ["a{.tar"]),
    ],
)
def test_braces_are_those_of_a_shell(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


def test_a_pattern_of_too_many_shards_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_names, "MAX_SHARDS", 1000)
    assert len(expand("{0..999}.tar")) == 1000
    with pytest.raises(DovetailError, match="more than 1,000 shards"):
        expand("{0..99999}{0..99999}.tar")


def test_what_names_shards(tmp_path: Path) -> None:
    for name in ("shards/a.tar", "shards/sizes.json", "mixed/a.tar", "mixed/b.jpg", "plain/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    for name in ("shards", "shards/{a,b}.tar", "missing-{000..010}.tar"):
        assert names_shards(str(tmp_path / name)), name
    for name in ("mixed", "plain", "empty", "missing", "shards/a.tar", "{a}.tar"):
        assert not names_shards(str(tmp_path / name)), name
    assert names_shards("https://host/a.tar")
    assert not names_shards("pipe:cat a.tar")


@pytest.mark.parametrize(
    "content",
    [
        "[1]", "{}", "{", '{"../a.tar": 1}', '{"/a.tar": 1}', '{"s3://b/a.tar": 1}',
        '{"a.tar": -1}', '{"a.tar": true}', '{"a.tar": 1.5}', "[" * 100_000,
    ],
)  # fmt: skip
def test_sizes_of_others_are_read_with_care(tmp_path: Path, content: str) -> None:
    file = tmp_path / "sizes.json"
    file.write_text(content)
    with pytest.raises(DovetailError, match="delete it to have the images counted"):
        read_sizes(file)


def test_sizes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps({"a.tar": 3, "b.tar": 0}))
    assert read_sizes(file) == {"a.tar": 3, "b.tar": 0}
