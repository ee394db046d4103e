"""A worker's name: one that no living process shares, and that its successor gets back when it dies.

A lease belongs to a name. A worker that is killed and started again asks under the same name, so it gets at once what it held;
without that its work would wait until the lease runs out. Nobody else can have the name meanwhile: it lies in a file whose
``flock`` ends with its holder and not before, so a stopped process, or a child that outlived its parent, keeps its own.

By the same token a reaper on the host sees at once who died, and frees what they held for whoever is there.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domain.errors import Unavailable

_held: list[int] = []  # descriptors of names taken by this process, for as long as it lives


def default_folder() -> Path:
    """Return where the processes of one user on this host keep their names."""
    return Path(tempfile.gettempdir()) / f"pruneloop-names-{os.geteuid()}"


def take_name(role: str, folder: Path | None = None) -> str:
    """Take the first free name of a role and keep it until this process ends.

    Args:
        role: ``search`` or ``build``.
        folder: Where the names lie; None: in the temp folder.

    Raises:
        Unavailable: ``names_unusable`` where the folder is somebody else's or cannot be written.
    """
    folder = folder or default_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError("it belongs to somebody else")
        for slot in itertools.count():
            path = folder / f"{role}-{slot}.name"
            descriptor = _lock(path)
            if descriptor is not None:
                _held.append(descriptor)
                return _name_of(path, descriptor)
    except OSError as error:
        raise Unavailable(
            f"Workers keep their names in {folder}, which cannot be used ({error}); "
            "remove it, or name another folder in PRUNELOOP_NAMES_DIR.",
            code="names_unusable",
        ) from error
    raise AssertionError("unreachable")


@contextmanager
def dead_names(folder: Path | None = None) -> Iterator[list[str]]:
    """Give the names whose holders are gone; inside, nobody can take one of them."""
    descriptors: list[int] = []
    names = []
    try:
        for path in sorted((folder or default_folder()).glob("*.name")):
            descriptor = _lock(path, is_new=False)
            if descriptor is not None:
                descriptors.append(descriptor)
                names.append(_name_of(path, descriptor))
        yield names
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _lock(path: Path, *, is_new: bool = True) -> int | None:
    """Return an open, locked name's file; None if somebody has it, or if it is gone."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if is_new else 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.lstat().st_ino:  # else a cleaner of the temp folder was here
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _name_of(path: Path, descriptor: int) -> str:
    """Return the name that a locked file holds, made up where it is empty.

    Random, not the slot's number: two containers with one host name and a temp folder each must not share a name.
    """
    token = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
    if not token:
        token = secrets.token_hex(4)
        os.pwrite(descriptor, token.encode(), 0)
    return f"{path.name.rpartition('-')[0]}@{socket.gethostname()}:{token}"
