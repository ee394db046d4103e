"""Files of data, wherever they lie: a zip that was uploaded, or a file or folder that the operator lets builders read."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from domain.data_files import MAX_MEMBERS, MAX_UNPACKED_BYTES, is_hidden, members
from domain.errors import NotFound
from domain.job import DataSpec
from domain.ports import ArtifactStore
from pruning.datasets.problems import problem

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


class Tree(Protocol):
    """Files by their paths, with ``/`` between the parts, sorted."""

    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        ...


class ZipTree:
    """A zip, read member by member; nothing is written to a disk."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = tuple(sorted(entry.filename for entry in members(archive)))

    def read(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise problem("data.artifact", "bad_data", f"{name} in the zip cannot be read: {error}.") from error


class FolderTree:
    """A folder; links in it are not followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found, size_bytes = [], 0
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file() or is_hidden(name):
                continue
            found.append(name)
            size_bytes += path.stat().st_size
            if len(found) > MAX_MEMBERS or size_bytes > MAX_UNPACKED_BYTES:
                message = (
                    f"{folder.name} holds more than {MAX_MEMBERS} files or {MAX_UNPACKED_BYTES} bytes; give fewer."
                )
                raise problem("data.path", "data_too_large", message)
        self.names = tuple(sorted(found))

    def read(self, name: str) -> bytes:
        path = self._folder / name
        if path.is_symlink() or not path.resolve().is_relative_to(self._folder.resolve()):
            raise problem("data.path", "bad_data", f"{name} leads outside the folder.")
        return path.read_bytes()


class FileTree:
    """One file, under its own name."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self.names: tuple[str, ...] = (name,)

    def read(self, name: str) -> bytes:
        return self._path.read_bytes()


def locate(spec: DataSpec, artifacts: ArtifactStore, folder: Path | None) -> Path:
    """Return where a job's data lies on this machine.

    Raises:
        NotFound: ``data_not_found`` where it was never uploaded, or is not there.
        Invalid: ``data_path_not_allowed``.
    """
    if spec.artifact is not None:
        if not artifacts.exists(spec.artifact):
            message = (
                f"No artifact {spec.artifact}; upload the file with POST /v1/artifacts?kind=data and give its digest."
            )
            raise NotFound(message, code="data_not_found")
        return artifacts.local_path(spec.artifact)
    if folder is None:
        message = "Builders here read no paths; the operator sets PRUNELOOP_DATASETS_DIR, or upload the file and give `artifact`."
        raise problem("data.path", "data_path_not_allowed", message)
    path = folder / (spec.path or "")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise problem("data.path", "data_path_not_allowed", f"{spec.path} leads outside PRUNELOOP_DATASETS_DIR.")
    if not path.exists():
        raise NotFound(f"There is no {spec.path} in PRUNELOOP_DATASETS_DIR of this builder.", code="data_not_found")
    return path


@contextmanager
def open_tree(path: Path, file_name: str) -> Iterator[Tree]:
    """Open a folder, a zip of one, or a single file under the name given."""
    if path.is_dir():
        yield FolderTree(path)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield ZipTree(archive)
    else:
        yield FileTree(path, file_name)


def without_common_folder(names: tuple[str, ...], depth: int) -> str:
    """Return the folder that every path begins with, as zips of a folder have it, where ``depth`` parts are left below it."""
    first = {PurePosixPath(name).parts[0] for name in names}
    least = min((len(PurePosixPath(name).parts) for name in names), default=0)
    return f"{first.pop()}/" if len(first) == 1 and least > depth else ""


def fingerprint(path: Path) -> str:
    """Return a short hash of names, sizes and times below a path: what a cache is told by, and a report."""
    found = hashlib.sha256()
    for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if one.is_file() and not one.is_symlink():
            facts = one.stat()
            found.update(f"{one.relative_to(path)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return found.hexdigest()[:12]
