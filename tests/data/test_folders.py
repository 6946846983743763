"""Folders are refused early only if they hold no images in any form."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovetail.data.folders import refuse_without_images
from dovetail.errors import DataError


@pytest.mark.parametrize("name", ["photos-000000.tar", "train.parquet", "data-00000-of-00001.arrow"])
def test_a_folder_of_files_that_hold_images_is_not_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="no images"):
        refuse_without_images(str(tmp_path))
    (tmp_path / name).touch()
    refuse_without_images(str(tmp_path))
