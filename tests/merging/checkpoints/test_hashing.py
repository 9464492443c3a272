import hashlib
import os
from pathlib import Path

import pytest

from merging.checkpoints import hashing


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sha256"


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """A file last changed long ago, so that its hash is remembered."""
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    os.utime(file, (1e9, 1e9))
    return file


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_one_file_has_its_own_sha256(cache: Path, settled: Path) -> None:
    assert hashing.files_sha256([settled]) == sha(b"one")


def test_several_files_are_hashed_as_sha256sum_lists_them(cache: Path, settled: Path) -> None:
    other = settled.with_name("another")
    other.write_bytes(b"two")
    expected = sha(f"{sha(b'two')}  another\n{sha(b'one')}  weights\n".encode())
    assert hashing.files_sha256([settled, other]) == expected


def test_second_time_reads_the_cache(
    cache: Path, settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing.file_sha256(settled)
    monkeypatch.setattr(hashing, "_digest", lambda path: pytest.fail("hashed again"))
    assert hashing.file_sha256(settled) == sha(b"one")


def test_changed_file_is_hashed_again(cache: Path, settled: Path) -> None:
    hashing.file_sha256(settled)
    settled.write_bytes(b"two")
    assert hashing.file_sha256(settled) == sha(b"two")


def test_fresh_file_is_not_remembered(cache: Path, settled: Path) -> None:
    settled.write_bytes(b"now")
    hashing.file_sha256(settled)
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0" * 64 + b" 3 0 /elsewhere\n", b"zz 1"])
def test_corrupt_cache_is_replaced(cache: Path, settled: Path, content: bytes) -> None:
    hashing.file_sha256(settled)
    (entry,) = cache.iterdir()
    entry.write_bytes(content)
    assert hashing.file_sha256(settled) == sha(b"one")
    assert entry.read_text().startswith(sha(b"one"))


def test_unwritable_cache_is_no_error(
    tmp_path: Path, settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "file"))
    assert hashing.file_sha256(settled) == sha(b"one")


def test_what_was_begun_is_waited_for_and_what_changed_since_is_hashed_anew(
    cache: Path, settled: Path
) -> None:
    content = bytes(range(256)) * (hashing._LARGE_BYTES // 256 + 1)
    settled.write_bytes(content)
    hashing.begin_sha256([settled, settled])
    assert hashing.file_sha256(settled) == sha(content)
    settled.write_bytes(content[::-1])
    assert hashing.file_sha256(settled) == sha(content[::-1])


def test_what_was_written_here_is_not_read_again(
    cache: Path, settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing.know_sha256(settled, sha(b"one"))
    monkeypatch.setattr(hashing, "_digest", lambda path: pytest.fail("read"))
    assert hashing.file_sha256(settled) == sha(b"one")
