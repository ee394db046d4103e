"""Artifacts as files in a folder, named by their sha256: written whole or not at all, verified when read.

``<root>/ab/cdef...`` holds the bytes; ``<root>/tmp`` what is being written. A file appears under its name by one rename, after
its bytes are on disk; so a crash leaves an orphan in ``tmp`` at worst, which is cleared away a day later.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from domain.artifact import ArtifactKind, ArtifactRef, is_digest
from domain.errors import Invalid, NotFound, Unavailable

BLOCK_BYTES = 1024 * 1024
ORPHAN_AGE_S = 24 * 3600.0
MAX_VERIFIED = 100_000

Stamp = tuple[int, int, int, int]  # inode, size, mtime and ctime in ns: a file changed in place has another


class FileArtifactStore:
    """``domain.ports.ArtifactStore`` in a folder. Any number of processes and hosts may share one.

    Args:
        root: The folder; made where absent.
        orphan_age_s: A temporary file older than this belongs to nobody any more.
    """

    def __init__(self, root: Path, *, orphan_age_s: float = ORPHAN_AGE_S) -> None:
        self._root = root
        self._temporary = root / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._verified: dict[str, Stamp] = {}
        self._lock = threading.Lock()
        self._clear_orphans(orphan_age_s)

    def put_file(self, path: Path, kind: ArtifactKind) -> ArtifactRef:
        """Store a copy of a file and return its reference. Storing the same bytes twice is one file."""
        return self._put(_blocks(path), kind, max_bytes=None)

    def put_bytes(self, data: bytes, kind: ArtifactKind) -> ArtifactRef:
        """Store bytes and return their reference."""
        return self._put([data], kind, max_bytes=None)

    def put_stream(self, chunks: Iterator[bytes], kind: ArtifactKind, *, max_bytes: int) -> ArtifactRef:
        """Store a stream. Raises Invalid ``too_large`` past ``max_bytes``, leaving nothing behind."""
        return self._put(chunks, kind, max_bytes=max_bytes)

    def read(self, digest: str) -> bytes:
        """Return the bytes, verified. Raises NotFound, or Unavailable ``artifact_corrupt``."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise absent(digest) from error
        if hashlib.sha256(data).hexdigest() != digest.removeprefix("sha256:"):
            raise corrupt(digest, path)
        return data

    def local_path(self, digest: str) -> Path:
        """Return the file, which must not be changed. It is verified once, and again whenever it looks touched.

        Raises:
            NotFound: No such artifact.
            Unavailable: ``artifact_corrupt``.
        """
        path = self._path(digest)
        try:
            with path.open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                if self._verified.get(digest) == stamp:
                    return path
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise absent(digest) from error
        if found != digest.removeprefix("sha256:"):
            raise corrupt(digest, path)
        self._remember(digest, stamp)
        return path

    def exists(self, digest: str) -> bool:
        """Whether the file is there; its bytes are not looked at."""
        return self._path(digest).is_file()

    def remove(self, digest: str, *, unused_for_s: float) -> bool:
        """Delete a file stored longer ago than that; return whether it is gone now.

        Storing the same bytes anew counts as storing: whoever does so while we look keeps the file. It is taken aside first, and
        put back where its time says that it is in use again.

        Raises:
            NotFound: No such artifact.
        """
        path = self._path(digest)
        aside = self._temporary / f"removed-{secrets.token_hex(8)}"
        try:
            if time.time() - path.stat().st_mtime < unused_for_s:
                return False
            path.rename(aside)
            if time.time() - aside.stat().st_mtime < unused_for_s:
                aside.rename(path)
                return False
        except FileNotFoundError as error:
            raise absent(digest) from error
        aside.unlink()
        self._verified.pop(digest, None)
        return True

    def _put(self, chunks: Iterable[bytes], kind: ArtifactKind, *, max_bytes: int | None) -> ArtifactRef:
        hasher = hashlib.sha256()
        size_bytes = 0
        handle, name = tempfile.mkstemp(dir=self._temporary)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    size_bytes += len(chunk)
                    if max_bytes is not None and size_bytes > max_bytes:
                        raise Invalid(
                            f"The file is larger than {max_bytes} bytes, the most that is taken; send a smaller one, "
                            "or ask the operator to raise the limit.",
                            code="too_large",
                            metadata={"max_bytes": max_bytes},
                        )
                    hasher.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            ref = ArtifactRef(digest=f"sha256:{hasher.hexdigest()}", size_bytes=size_bytes, kind=kind)
            self._install(temporary, ref.digest)
        finally:
            temporary.unlink(missing_ok=True)
        return ref

    def _install(self, temporary: Path, digest: str) -> None:
        """Give a written file its name, unless the same bytes have it already; bytes gone bad there are replaced."""
        path = self._path(digest)
        try:
            self.local_path(digest)
            os.utime(path)  # in use again: see ``remove``
            self._remember(digest, _stamp(path.stat()))
        except (NotFound, Unavailable, FileNotFoundError):
            if not path.parent.is_dir():
                path.parent.mkdir(exist_ok=True)
                _sync_folder(self._root)
            temporary.replace(path)
            _sync_folder(path.parent)
            self._remember(digest, _stamp(path.stat()))

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise NotFound(
                f"{digest!r} is not the name of an artifact; it reads sha256: and 64 hexadecimal digits.",
                metadata={"digest": digest},
            )
        name = digest.removeprefix("sha256:")
        return self._root / name[:2] / name[2:]

    def _remember(self, digest: str, stamp: Stamp) -> None:
        with self._lock:
            if len(self._verified) >= MAX_VERIFIED:
                self._verified.clear()
            self._verified[digest] = stamp

    def _clear_orphans(self, orphan_age_s: float) -> None:
        oldest = time.time() - orphan_age_s
        for path in self._temporary.iterdir():
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:  # its writer, or another process that clears, was first
                continue


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _stamp(status: os.stat_result) -> Stamp:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def absent(digest: str) -> NotFound:
    """Return the error of an artifact that is not there."""
    return NotFound(f"There is no artifact {digest}; upload it with POST /v1/artifacts.", metadata={"digest": digest})


def corrupt(digest: str, place: Path | str) -> Unavailable:
    """Return the error of bytes that are not what their name says."""
    return Unavailable(
        f"The bytes of artifact {digest} have changed where they lie ({place}). Upload it again, and check the disk.",
        code="artifact_corrupt",
        metadata={"digest": digest},
    )
