"""The whole system, started as a person starts it: `pruneloop up` in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.api import PruneloopClient
from workers.servers.folders import prepare_folders
from workers.servers.postgres import stop_postgres
from workers.servers.valkey import stop_valkey

START_TIMEOUT_S = 90


@dataclass
class System:
    """A data folder and the supervisor that runs on it."""

    data_dir: Path
    process: subprocess.Popen[bytes] | None = None
    options: tuple[str, ...] = ()

    def up(self) -> None:
        log = self.data_dir / "up.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "client", "up", "--data-dir", str(self.data_dir), "--port", "0", *self.options],
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")},
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"`up` ended: {log.read_text()[-2000:]}"
            try:
                if json.loads(self.state_file.read_text())["pid"] == self.process.pid:
                    return
            except (OSError, ValueError):
                pass
            time.sleep(0.1)
        raise AssertionError(f"`up` was not ready: {log.read_text()[-2000:]}")

    @property
    def state_file(self) -> Path:
        return self.data_dir / "run" / "server.json"

    @property
    def url(self) -> str:
        return str(json.loads(self.state_file.read_text())["url"])

    @property
    def token(self) -> str:
        return (self.data_dir / "admin-token").read_text().strip()

    def client(self) -> PruneloopClient:
        return PruneloopClient(self.url, self.token)

    def signal(self, signum: int) -> int:
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(60)


@contextmanager
def started(*options: str) -> Iterator[System]:
    """Run the whole system in a folder of its own."""
    data_dir = Path(tempfile.mkdtemp(prefix="pl-e2e-"))
    data_dir.chmod(0o755)
    system = System(data_dir, options=options)
    try:
        system.up()
        yield system
    finally:
        if system.process is not None and system.process.poll() is None:
            system.signal(signal.SIGTERM)
        folders = prepare_folders(data_dir)
        stop_valkey(folders)
        stop_postgres(folders)
        shutil.rmtree(data_dir, ignore_errors=True)


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    with started() as running:
        yield running
