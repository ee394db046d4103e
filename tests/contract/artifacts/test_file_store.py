"""The folder of files keeps the contract, and what the contract cannot see: layout, corruption, crashes, crowds."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from db.artifacts import FileArtifactStore
from domain.artifact import ArtifactKind, digest_of
from domain.errors import Invalid, Unavailable
from tests.contract.artifacts.contract import BODY, ArtifactStoreContract


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def store(root: Path) -> FileArtifactStore:
    return FileArtifactStore(root)


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


class TestFileArtifactStore(ArtifactStoreContract):
    """Everything every store must do."""


def test_a_file_lies_under_its_digest_and_nothing_else_is_left(store: FileArtifactStore, root: Path) -> None:
    name = store.put_bytes(BODY, ArtifactKind.ONNX).digest.removeprefix("sha256:")
    assert files_below(root) == [root / name[:2] / name[2:]]


def test_another_process_reads_it_too(store: FileArtifactStore, root: Path) -> None:
    ref = store.put_bytes(BODY, ArtifactKind.ONNX)
    assert FileArtifactStore(root).read(ref.digest) == BODY
    assert store.local_path(ref.digest).stat().st_mode & 0o444 == 0o444


def test_a_refused_stream_leaves_no_file_behind(store: FileArtifactStore, root: Path) -> None:
    with pytest.raises(Invalid):
        store.put_stream(iter([b"x" * 100]), ArtifactKind.DATA, max_bytes=10)
    assert files_below(root) == []


@pytest.mark.parametrize("size", [len(BODY), len(BODY) - 1])
def test_bytes_that_changed_on_disk_are_never_handed_out(store: FileArtifactStore, size: int) -> None:
    ref = store.put_bytes(BODY, ArtifactKind.ONNX)
    path = store.local_path(ref.digest)
    path.write_bytes(b"!" + BODY[1:size])
    for look in (store.read, store.local_path):
        with pytest.raises(Unavailable) as caught:
            look(ref.digest)
        assert caught.value.code == "artifact_corrupt"


def test_a_change_that_hides_its_time_is_found(store: FileArtifactStore) -> None:
    ref = store.put_bytes(BODY, ArtifactKind.ONNX)
    path = store.local_path(ref.digest)
    before = path.stat()
    time.sleep(0.02)  # the file system's clock has steps
    path.write_bytes(BODY[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Unavailable):
        store.local_path(ref.digest)


def test_uploading_again_mends_what_went_bad(store: FileArtifactStore) -> None:
    ref = store.put_bytes(BODY, ArtifactKind.ONNX)
    store.local_path(ref.digest).write_bytes(b"bad")
    store.put_bytes(BODY, ArtifactKind.ONNX)
    assert store.read(ref.digest) == BODY
    assert store.local_path(ref.digest).read_bytes() == BODY


def test_only_old_orphans_of_a_crash_are_cleared(store: FileArtifactStore, root: Path) -> None:
    old, young = root / "tmp" / "old", root / "tmp" / "young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    FileArtifactStore(root, orphan_age_s=600)
    assert files_below(root) == [young]


def test_many_that_store_the_same_at_once_make_one_file(store: FileArtifactStore, root: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        refs = list(pool.map(lambda _: FileArtifactStore(root).put_bytes(BODY, ArtifactKind.ONNX), range(16)))
    assert {ref.digest for ref in refs} == {digest_of(BODY)}
    assert len(files_below(root)) == 1
    assert store.read(refs[0].digest) == BODY
