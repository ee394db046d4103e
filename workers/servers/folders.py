"""Where the embedded servers live: a data folder, and sockets whose paths are short enough for the kernel.

PostgreSQL refuses to run as root. Then it runs as an unprivileged user, who must be able to reach its binaries, its data and
its socket; a folder below a closed home is not reachable, so those parts move to a system folder and a link stays behind.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from domain.errors import Unavailable

UNPRIVILEGED_ID = 65534  # nobody / nogroup, the same number on every Linux
SYSTEM_FOLDER = Path("/var/lib/pruneloop")
LONGEST_SOCKET_PATH = 100  # the kernel's sun_path holds 108 bytes, macOS' 104


@dataclass(frozen=True)
class ServerFolders:
    """The folders of one data folder's servers; made on demand, all closed to others."""

    data_dir: Path
    run_dir: Path
    log_dir: Path
    postgres_dir: Path
    valkey_dir: Path
    postgres_socket_dir: Path
    valkey_socket: Path


def runs_as_root() -> bool:
    return os.geteuid() == 0


def prepare_folders(data_dir: Path) -> ServerFolders:
    """Make the folders below a data folder.

    Raises:
        Unavailable: ``data_dir_unusable`` where a folder cannot be made or belongs to somebody else.
    """
    data_dir = data_dir.resolve()
    try:
        for part in (data_dir, data_dir / "run", data_dir / "logs", data_dir / "valkey"):
            part.mkdir(parents=True, exist_ok=True)
            if part != data_dir:
                part.chmod(0o700)
    except OSError as error:
        raise Unavailable(
            f"The data folder {data_dir} cannot be used ({error.strerror}); choose another with --data-dir.",
            code="data_dir_unusable",
        ) from error
    short = _short_folder(data_dir)
    postgres_dir = data_dir / "postgres"
    postgres_socket_dir = short / "pg"
    if runs_as_root():
        if not is_reachable_by_others(data_dir):
            postgres_dir = _linked(postgres_dir, SYSTEM_FOLDER / _name_of(data_dir) / "postgres")
        if not is_reachable_by_others(short):
            postgres_socket_dir = _private(Path(tempfile.gettempdir()) / f"pruneloop-{_name_of(data_dir)}-pg")
    _own(postgres_dir)
    _own(postgres_socket_dir)
    return ServerFolders(
        data_dir=data_dir,
        run_dir=data_dir / "run",
        log_dir=data_dir / "logs",
        postgres_dir=postgres_dir,
        valkey_dir=data_dir / "valkey",
        postgres_socket_dir=postgres_socket_dir,
        valkey_socket=_private(short / "vk") / "valkey.sock",
    )


def is_reachable_by_others(path: Path) -> bool:
    """Return whether a user without rights can walk down to this folder."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents) if part.exists())


def _name_of(data_dir: Path) -> str:
    return hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]


def _short_folder(data_dir: Path) -> Path:
    """Return a folder for sockets: inside the data folder where the path is short enough, else in the temp folder.

    As root the parent stays open to be walked through; the folders of the sockets themselves are closed.
    """
    inside = data_dir / "sock"
    if len(str(inside / "pg" / ".s.PGSQL.5432.lock")) <= LONGEST_SOCKET_PATH:
        inside.mkdir(exist_ok=True)
        inside.chmod(0o711 if runs_as_root() else 0o700)
        return inside
    outside = _private(Path(tempfile.gettempdir()) / f"pruneloop-{_name_of(data_dir)}")
    if runs_as_root():
        outside.chmod(0o711)
    return outside


def _private(path: Path) -> Path:
    """Make a folder only its owner may enter; refuse one that somebody else prepared."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), UNPRIVILEGED_ID}:
        raise Unavailable(
            f"{path} exists and belongs to somebody else; remove it or choose another --data-dir.",
            code="data_dir_unusable",
        )
    path.chmod(0o700)
    return path


def _own(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    if runs_as_root():
        os.chown(path, UNPRIVILEGED_ID, UNPRIVILEGED_ID)


def _linked(link: Path, place: Path) -> Path:
    if link.is_dir() and not link.is_symlink():
        return link  # made before the parents were closed; leave it where it is
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(place)
    return place
