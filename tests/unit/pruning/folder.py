"""A folder of artifacts, as small as an ArtifactStore for tests can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from domain.artifact import ArtifactKind, ArtifactRef, digest_of
from domain.errors import NotFound


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put_bytes(self, data: bytes, kind: ArtifactKind) -> ArtifactRef:
        digest = digest_of(data)
        self.local_path(digest, must_exist=False).write_bytes(data)
        return ArtifactRef(digest=digest, size_bytes=len(data), kind=kind)

    def put_file(self, path: Path, kind: ArtifactKind) -> ArtifactRef:
        return self.put_bytes(path.read_bytes(), kind)

    def put_stream(self, chunks: Iterator[bytes], kind: ArtifactKind, *, max_bytes: int) -> ArtifactRef:
        return self.put_bytes(b"".join(chunks), kind)

    def read(self, digest: str) -> bytes:
        return self.local_path(digest).read_bytes()

    def local_path(self, digest: str, *, must_exist: bool = True) -> Path:
        path = self._folder / digest.replace(":", "-")
        if must_exist and not path.exists():
            raise NotFound(f"No artifact {digest}.")
        return path

    def exists(self, digest: str) -> bool:
        return self.local_path(digest, must_exist=False).exists()
