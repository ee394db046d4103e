"""The cache downloads once, verifies always, and stays within its bound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from domain.artifact import ArtifactKind, ArtifactRef, digest_of
from domain.errors import NotFound, Unavailable
from workers.agent.fetch import ArtifactCache


class Server:
    """Serves bytes by digest; can be made to break off, to lie and to be away."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.downloads = 0
        self.failures = 0

    def put(self, data: bytes) -> ArtifactRef:
        ref = ArtifactRef(digest=digest_of(data), size_bytes=len(data), kind=ArtifactKind.ONNX)
        self.files[ref.digest] = data
        return ref

    @contextmanager
    def download(self, digest: str) -> Iterator[Iterator[bytes]]:
        self.downloads += 1
        if digest not in self.files:
            raise NotFound(digest)
        data = self.files[digest]
        if self.failures:
            self.failures -= 1
            raise Unavailable("connection lost")
        yield iter([data[:3], data[3:]])


@pytest.fixture
def server() -> Server:
    return Server()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "cache", server.download, max_bytes=1000)
    ref = server.put(b"weights")
    assert cache.fetch(ref).read_bytes() == b"weights"
    assert cache.fetch(ref).read_bytes() == b"weights"
    assert server.downloads == 1


def test_a_file_that_rotted_on_disk_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, server.download, max_bytes=1000)
    ref = server.put(b"weights")
    cache.fetch(ref).write_bytes(b"wEights")
    assert cache.fetch(ref).read_bytes() == b"weights"


@pytest.mark.parametrize("sent", [b"weightX", b"weig", b"weights and more", b""])
def test_what_does_not_fit_its_digest_is_refused_and_leaves_nothing(
    server: Server, tmp_path: Path, sent: bytes
) -> None:
    cache = ArtifactCache(tmp_path, server.download, max_bytes=1000)
    ref = server.put(b"weights")
    server.files[ref.digest] = sent
    with pytest.raises(Unavailable) as caught:
        cache.fetch(ref)
    assert caught.value.code == "artifact_corrupt"
    assert list(tmp_path.iterdir()) == []


def test_a_lost_connection_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.failures = 2
    assert ArtifactCache(tmp_path, server.download, max_bytes=1000).fetch(server.put(b"weights")).exists()


def test_what_the_server_does_not_have_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    ref = server.put(b"weights")
    del server.files[ref.digest]
    with pytest.raises(NotFound):
        ArtifactCache(tmp_path, server.download, max_bytes=1000).fetch(ref)
    assert server.downloads == 1


def test_the_least_used_file_goes_first(server: Server, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, server.download, max_bytes=25)
    first, second, third = (server.put(bytes([number]) * 10) for number in range(3))
    old, kept = cache.fetch(first), cache.fetch(second)
    os.utime(old, (1, 1))
    os.utime(kept, (2, 2))
    cache.fetch(first)  # used again: now the second one is the oldest
    cache.fetch(third)
    assert old.exists()
    assert not kept.exists()


def test_a_file_larger_than_the_cache_is_still_fetched(server: Server, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, server.download, max_bytes=5)
    small = cache.fetch(server.put(b"abc"))
    assert cache.fetch(server.put(b"0123456789")).exists()
    assert not small.exists()


def test_leftovers_of_a_killed_download_are_cleared(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".partial-xyz").write_bytes(b"half")
    ArtifactCache(tmp_path, server.download, max_bytes=5)
    assert list(tmp_path.iterdir()) == []
