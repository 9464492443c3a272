import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merging.files import apply_umask, write_text


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


def test_text_has_the_mode_that_the_umask_asks_for(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "new")
    assert (mode(tmp_path / "text"), (tmp_path / "text").read_text()) == ("0o640", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_files_and_folders_below_get_the_mode_that_the_umask_asks_for(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir(mode=0o700)
    (folder / "heads").mkdir(mode=0o700)
    save_file({"weight": torch.ones(1)}, folder / "heads/model.safetensors")
    apply_umask(folder)
    assert (mode(folder), mode(folder / "heads")) == ("0o750", "0o750")
    assert mode(folder / "heads/model.safetensors") == "0o640"
    assert os.umask(0o027) == 0o027
