"""A data folder, saved while it works and brought back: the tables by ``pg_dump``, then the files they name.

The tables first: files never change and are stored before the rows that name them, so whatever the dump knows is there when the
files are copied. A file is copied once; saving again into the same folder copies what is new.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from domain.errors import Conflict, Invalid, NotFound, Unavailable
from workers.servers.folders import ServerFolders
from workers.servers.postgres import DATABASE, find_binaries, find_postgres, start_postgres, stop_postgres, url_of

DUMP = "database.dump"
SECRETS = ("admin-token", "agent/agent.json")  # who may speak, and who the local device is: mode 0600


def save(folders: ServerFolders, place: Path) -> int:
    """Save the tables and every file; return how many files were copied.

    Raises:
        NotFound: ``nothing_to_save`` where the folder holds no database.
        Unavailable: ``backup_failed`` with what pg_dump said, or the folder cannot be written.
    """
    if not (folders.postgres_dir / "PG_VERSION").exists():
        raise NotFound(
            f"{folders.data_dir} holds no database; name the folder with --data-dir.", code="nothing_to_save"
        )
    was_running = find_postgres(folders) is not None
    start_postgres(folders)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place, prefix=".dump-")
        os.close(handle)
        _run("pg_dump", "--format=custom", "--no-owner", f"--file={name}", url_of(folders, DATABASE))
        _sync(Path(name))
        Path(name).replace(place / DUMP)
        for secret in SECRETS:
            if (folders.data_dir / secret).exists():
                _copy(folders.data_dir / secret, place / secret)
        return _copy_files(folders.data_dir / "artifacts", place / "artifacts")
    except OSError as error:
        raise Unavailable(f"{place} cannot be written: {error}.", code="backup_failed") from error
    finally:
        if not was_running:
            stop_postgres(folders)


def restore(place: Path, folders: ServerFolders) -> int:
    """Bring a saved folder back into an empty one; return how many files were copied. The schema stays that of the backup.

    Raises:
        Invalid: ``no_backup`` where the place holds none.
        Conflict: ``not_empty`` where the folder has a database already: nothing is ever overwritten.
        Unavailable: ``restore_failed`` with what pg_restore said.
    """
    if not (place / DUMP).exists():
        raise Invalid(f"{place} holds no {DUMP}; name a folder that `pruneloop backup` wrote.", code="no_backup")
    if (folders.postgres_dir / "PG_VERSION").exists():
        raise Conflict(
            f"{folders.data_dir} has a database already; restore into a new folder with --data-dir.", code="not_empty"
        )
    count = _copy_files(place / "artifacts", folders.data_dir / "artifacts")
    for secret in SECRETS:
        if (place / secret).exists():
            _copy(place / secret, folders.data_dir / secret)
    start_postgres(folders)
    try:
        _run(
            "pg_restore", "--no-owner", "--exit-on-error", "--single-transaction",
            f"--dbname={url_of(folders, DATABASE)}", str(place / DUMP),
        )  # fmt: skip
    finally:
        stop_postgres(folders)
    return count


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run([str(find_binaries() / program), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        code = "backup_failed" if program == "pg_dump" else "restore_failed"
        raise Unavailable(f"{program} failed: {done.stderr.strip()[-500:]}", code=code)


def _copy_files(source: Path, place: Path) -> int:
    """Copy the stored files that are not there yet, each whole or not at all."""
    count = 0
    for path in _stored(source):
        target = place / path.relative_to(source)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(path, target)
            count += 1
    return count


def _stored(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.glob("[0-9a-f][0-9a-f]/*") if path.is_file())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".copy-")
    os.close(handle)
    shutil.copy2(source, name)
    _sync(Path(name))
    Path(name).replace(target)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
