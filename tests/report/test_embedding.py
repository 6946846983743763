"""`embed` says at once where its file cannot be written, and says so in a sentence where that shows at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dovetail.errors import DovetailError
from dovetail.report.embedding import Embeddings, embed


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "e.npy").mkdir()
    for out, sentence in (("file/e.npy", "file is a file; specify a folder"), ("e.npy", "is a folder; specify a file")):
        with pytest.raises(DovetailError, match=sentence):
            embed(run=tmp_path / "nowhere", data=[tmp_path / "a.jpg"], out=tmp_path / out)


def test_a_full_disk_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    found = Embeddings(np.zeros((1, 2), np.float32), [0], [], 3)
    monkeypatch.setattr("dovetail.report.embedding.embeddings_of", lambda *_, **__: found)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DovetailError, match=r"e\.npy cannot be written \(No space left on device\)"):
        embed(run=tmp_path, data=[tmp_path / "a.jpg"], out=tmp_path / "new" / "e.npy")
