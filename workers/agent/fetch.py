"""Artifacts by digest, kept on the device: downloaded once, verified at every use, the least used thrown away first."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from domain.artifact import ArtifactRef, digest_of_file
from domain.errors import Unavailable

Download = Callable[[str], AbstractContextManager[Iterator[bytes]]]
"""``digest`` -> the file's bytes in pieces. Raises NotFound, Unavailable."""

TRIES = 3
PARTIAL = ".partial-"


class ArtifactCache:
    """A folder of files named by digest.

    Args:
        folder: Made where absent.
        download: Where a missing file comes from.
        max_bytes: Upper bound of the folder; the file just asked for stays in any case.
    """

    def __init__(self, folder: Path, download: Download, *, max_bytes: int) -> None:
        self._folder = folder
        self._download = download
        self._max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(PARTIAL + "*"):  # of a process that was killed while it downloaded
            leftover.unlink(missing_ok=True)

    def fetch(self, ref: ArtifactRef) -> Path:
        """Return a verified local path.

        Raises:
            NotFound: The server does not have it.
            Unavailable: ``artifact_corrupt`` if what arrives is something else, or the server is away.
        """
        path = self._folder / ref.digest.removeprefix("sha256:")
        if self._is_good(path, ref):
            os.utime(path)
            return path
        path.unlink(missing_ok=True)
        self._make_room(ref.size_bytes, keep=path)
        for attempt in range(1, TRIES + 1):
            try:
                self._fetch_once(ref, path)
                return path
            except Unavailable:
                if attempt == TRIES:
                    raise
        raise AssertionError("unreachable")

    @staticmethod
    def _is_good(path: Path, ref: ArtifactRef) -> bool:
        try:
            return path.stat().st_size == ref.size_bytes and digest_of_file(path) == ref.digest
        except OSError:
            return False

    def _fetch_once(self, ref: ArtifactRef, path: Path) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=PARTIAL)
        partial = Path(name)
        try:
            digest, size_bytes = hashlib.sha256(), 0
            with os.fdopen(handle, "wb") as file, self._download(ref.digest) as pieces:
                for piece in pieces:
                    size_bytes += len(piece)
                    if size_bytes > ref.size_bytes:
                        break  # more than was promised: never mind the rest, the digest cannot fit
                    digest.update(piece)
                    file.write(piece)
            if size_bytes != ref.size_bytes or f"sha256:{digest.hexdigest()}" != ref.digest:
                raise Unavailable(
                    f"What the server sent for {ref.digest} is something else; upload or build the artifact again.",
                    code="artifact_corrupt",
                    metadata={"digest": ref.digest},
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, size_bytes: int, *, keep: Path) -> None:
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if path != keep and not path.name.startswith(PARTIAL):
                    stat = path.stat()
                    files.append((stat.st_mtime_ns, stat.st_size, path))
        total_bytes = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total_bytes + size_bytes <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total_bytes -= size
