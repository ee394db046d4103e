"""A worker's name: one that no living process shares, and that its successor gets back when it dies.

A lease belongs to a name. A worker that is killed and started again asks under the same name, so it gets at once what it held;
without that its work would wait until the lease runs out. Nobody else can have the name meanwhile: it lies in a file whose
``flock`` ends with its holder and not before, so a stopped process, or a child that outlived its parent, keeps its own.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import socket
import stat
import tempfile
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
            token = _take(folder / f"{role}-{slot}.name")
            if token is not None:
                return f"{role}@{socket.gethostname()}:{token}"
    except OSError as error:
        raise Unavailable(
            f"Workers keep their names in {folder}, which cannot be used ({error}); "
            "remove it, or name another folder in PRUNELOOP_NAMES_DIR.",
            code="names_unusable",
        ) from error
    raise AssertionError("unreachable")


def _take(path: Path) -> str | None:
    """Lock a name's file and return what it says, first made up where it is empty; None if it is taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino != path.lstat().st_ino:  # a cleaner of the temp folder was here
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return None
    # Random, not the slot's number: two containers with one host name and a temp folder each must not share a name.
    token = os.read(descriptor, 64).decode(errors="replace").strip()
    if not token:
        token = secrets.token_hex(4)
        os.write(descriptor, token.encode())
    _held.append(descriptor)
    return token
