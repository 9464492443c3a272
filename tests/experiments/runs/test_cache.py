"""Folders of a cache: made once, whole or not at all, under a digest of what they depend on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from experiments.runs import cache
from experiments.runs.cache import digest_of, made_once


def test_a_folder_is_made_once_however_many_ask_for_it(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(draft: Path) -> None:
        made.append(draft)
        (draft / "weights").write_text("x")

    folder = tmp_path / "new" / "pool"
    askers = [threading.Thread(target=made_once, args=(folder, make)) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(made) == 1
    assert (folder / "weights").read_text() == "x"
    assert not made[0].exists()


@pytest.mark.parametrize("resume", [False, True])
def test_what_fails_does_not_appear_and_is_kept_only_to_be_resumed(
    tmp_path: Path, resume: bool
) -> None:
    folder, seen = tmp_path / "pool", []

    def make(draft: Path) -> None:
        seen.append(sorted(path.name for path in draft.iterdir()))
        (draft / f"part{len(seen)}").touch()
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(folder, make, resume=resume)
    assert not folder.exists()
    made_once(folder, make, resume=resume)
    assert seen == [[], ["part1"] if resume else []]
    assert (folder / "part1").exists() == resume


def test_digest_changes_with_content_versions_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code.py"
    code.write_text("a = 1\n")
    first = digest_of({"steps": 1}, [code])
    assert first == digest_of({"steps": 1}, [code])
    digests = {first, digest_of({"steps": 2}, [code])}
    code.write_text("a = 2\n")
    digests.add(digest_of({"steps": 1}, [code]))
    monkeypatch.setattr(cache, "version", lambda package: "0.0")
    digests.add(digest_of({"steps": 1}, [code]))
    assert len(digests) == 4
