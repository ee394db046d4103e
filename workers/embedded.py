"""Everything on one machine: servers, schema, API, workers and a local agent, supervised until Ctrl-C.

The same programs as in a cluster, told by the same settings where the database and the broker are; nothing else in the
project knows that they share a machine.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from db.engine import upgrade
from domain.errors import Conflict, Unavailable
from domain.logs import LogFormat, configure_logging
from workers.drain import PARENT_VARIABLE, die_with_parent
from workers.servers.folders import ServerFolders, prepare_folders
from workers.servers.postgres import find_postgres, start_postgres, stop_postgres
from workers.servers.processes import find_process, stop_process, write_pid_file
from workers.servers.valkey import find_valkey, start_valkey, stop_valkey

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 30.0
# Between the end of a child and its next start, doubled while it keeps ending: work goes on within ten seconds of a kill.
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 3.0
SERVERS_EVERY_S = 1.0
STEADY_S = 10.0  # a child that lived this long has earned a quick restart again


@dataclass
class Child:
    """A supervised process: how to start it, and how often it had to be."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff_s: float = FIRST_BACKOFF_S
    next_start_at: float = 0.0


@dataclass
class Embedded:
    """The system on one data folder."""

    folders: ServerFolders
    host: str
    port: int
    with_agent: bool
    children: list[Child] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    is_stopping: bool = False

    @property
    def url(self) -> str:
        return f"http://{'127.0.0.1' if self.host in {'0.0.0.0', ''} else self.host}:{self.port}"

    @property
    def admin_token_file(self) -> Path:
        return self.folders.data_dir / "admin-token"

    @property
    def state_file(self) -> Path:
        return self.folders.run_dir / "server.json"

    def start(self) -> None:
        """Bring everything up until the API answers ready.

        Raises:
            Unavailable: With what to install, or which log to read.
        """
        self._clear_leftovers()
        database_url = os.environ.get("PRUNELOOP_DATABASE_URL") or start_postgres(self.folders)
        broker_url = os.environ.get("PRUNELOOP_BROKER_URL") or start_valkey(self.folders)
        upgrade(database_url)
        self.environment = {
            **os.environ,
            "PRUNELOOP_DATABASE_URL": database_url,
            "PRUNELOOP_BROKER_URL": broker_url,
            "PRUNELOOP_ARTIFACT_DIR": str(self.folders.data_dir / "artifacts"),
            "PRUNELOOP_ADMIN_TOKEN_FILE": str(self.admin_token_file),
            "PRUNELOOP_NAMES_DIR": str(self.folders.run_dir),
            "PRUNELOOP_AGENT_SERVER_URL": self.url,
            # torch's idle threads spin for a millisecond: from one layer to the next, not on into a measurement. Those that sleep
            # at once (OMP_WAIT_POLICY=PASSIVE) made a training take 1.3 to 2 times as long.
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),
            "PRUNELOOP_HOST": self.host,
            "PRUNELOOP_PORT": str(self.port),
            PARENT_VARIABLE: str(os.getpid()),
        }
        python = [sys.executable, "-m"]
        self.children = [
            Child("api", [*python, "api.main"]),
            *(Child(role, [*python, "workers.main", role]) for role in ("reaper", "search", "build")),
        ]
        # The API first, and alone: on a small machine five processes that import at once would each take five times as long.
        self._launch(self.children[0])
        self._wait_until_ready()
        for child in self.children[1:]:
            self._launch(child)
        if self.with_agent:
            agent = Child("agent", [*python, "workers.agent", "run", "--state-dir", str(self._agent_dir())])
            self._join_agent()
            self.children.append(agent)
            self._launch(agent)
        self.state_file.write_text(
            json.dumps({"url": self.url, "pid": os.getpid(), "host": self.host, "port": self.port})
        )

    def supervise(self) -> None:
        """Restart what dies, until told to stop."""
        servers_at = -math.inf
        while not self.is_stopping:
            # To ask after a server of one's own reads its process from /proc; after a child it is one system call.
            if time.monotonic() - servers_at >= SERVERS_EVERY_S:
                servers_at = time.monotonic()
                self._mend_servers()
            for child in self.children:
                self._mend(child)
            time.sleep(0.2)

    def stop(self) -> None:
        """Drain: workers first, so that they can hand their work back; then the API; then the servers."""
        self.state_file.unlink(missing_ok=True)
        workers = [child for child in self.children if child.name != "api"]
        for batch in (workers, [child for child in self.children if child.name == "api"]):
            for child in batch:
                if child.process is not None and child.process.poll() is None:
                    child.process.terminate()
            deadline = time.monotonic() + DRAIN_TIMEOUT_S
            for child in batch:
                self._await_end(child, deadline)
        stop_valkey(self.folders)
        stop_postgres(self.folders)

    def _await_end(self, child: Child, deadline: float) -> None:
        if child.process is None:
            return
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning(
                "%s did not leave in time and is killed; its work is taken up again at the next start", child.name
            )
            child.process.kill()
            child.process.wait(5)
        self._pid_file(child.name).unlink(missing_ok=True)

    def _pid_file(self, name: str) -> Path:
        return self.folders.run_dir / f"{name}.pid"

    def _agent_dir(self) -> Path:
        return self.folders.data_dir / "agent"

    def _clear_leftovers(self) -> None:
        """Children of a supervisor that was killed: the servers are found again, the rest is started anew."""
        for name in ("agent", "search", "build", "reaper", "api"):
            leftover = find_process(self._pid_file(name))
            if leftover is not None:
                log.info("stopping %s (%s), left over from an earlier start", name, leftover.pid)
                stop_process(leftover, sig=signal.SIGTERM, timeout_s=10)
            self._pid_file(name).unlink(missing_ok=True)

    def _launch(self, child: Child) -> None:
        with (self.folders.log_dir / f"{child.name}.log").open("ab") as out:
            # A session of its own: Ctrl-C in the terminal reaches the supervisor only, which drains in order.
            child.process = subprocess.Popen(
                child.command,
                env=self.environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        child.started_at = time.monotonic()
        write_pid_file(self._pid_file(child.name), child.process.pid)

    def _mend(self, child: Child) -> None:
        if child.process is None or child.process.poll() is None:
            if time.monotonic() - child.started_at > STEADY_S:
                child.backoff_s = FIRST_BACKOFF_S
            return
        if child.next_start_at == 0.0:
            log.warning(
                "%s ended with %s; starting it again in %.1f s", child.name, child.process.returncode, child.backoff_s
            )
            child.next_start_at = time.monotonic() + child.backoff_s
            child.backoff_s = min(LONGEST_BACKOFF_S, child.backoff_s * 2)
        elif time.monotonic() >= child.next_start_at:
            child.next_start_at = 0.0
            self._launch(child)

    def _mend_servers(self) -> None:
        """Start a server that ended. One that does not start now (its old processes may not be gone yet) is tried again."""
        try:
            if "PRUNELOOP_DATABASE_URL" not in os.environ and find_postgres(self.folders) is None:
                log.warning("PostgreSQL ended; starting it again")
                start_postgres(self.folders)
            if "PRUNELOOP_BROKER_URL" not in os.environ and find_valkey(self.folders) is None:
                log.warning("Valkey ended; starting it again")
                start_valkey(self.folders)
        except Unavailable as error:
            log.warning("%s", error)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        api = self.children[0]
        while time.monotonic() < deadline and not self.is_stopping:
            if api.process is not None and api.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise Unavailable(
            f"The API did not come up; its log is {self.folders.log_dir / 'api.log'}.", code="api_unavailable"
        )

    def _join_agent(self) -> None:
        """Join this machine as a device, once in the life of the data folder."""
        if (self._agent_dir() / "agent.json").exists():
            return
        token = self.admin_token_file.read_text().strip()
        answer = httpx.post(
            f"{self.url}/v1/join_tokens",
            headers={"Authorization": f"Bearer {token}"},
            json={"expires_in_s": 120},
            timeout=10,
        )
        answer.raise_for_status()
        from workers.agent.__main__ import join

        join(self.url, answer.json()["token"], socket.gethostname(), {"local": "true"}, self._agent_dir())


@contextmanager
def only_one(folders: ServerFolders) -> Iterator[None]:
    """Hold the data folder; a second supervisor on it is refused by name. The lock dies with its holder.

    Raises:
        Conflict: ``already_running``.
    """
    path = folders.run_dir / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise Conflict(
                f"{folders.data_dir} is in use by process {file.read().strip() or '?'}; "
                "stop that one, or choose another folder with --data-dir.",
                code="already_running",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def up(data_dir: Path, host: str = "127.0.0.1", port: int = 8420, with_agent: bool = True) -> int:
    """Start everything on a data folder and stay in the foreground until Ctrl-C or SIGTERM; return the exit code."""
    die_with_parent()
    configure_logging("INFO", LogFormat(os.environ.get("PRUNELOOP_LOG_FORMAT", LogFormat.TEXT)), "supervisor")
    logging.getLogger("alembic").setLevel("WARNING")
    folders = prepare_folders(data_dir)
    system = Embedded(folders, host, port or free_port(host), with_agent)

    def on_signal(*_: object) -> None:
        system.is_stopping = True

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, on_signal)
    with only_one(folders):
        started = time.monotonic()
        try:
            system.start()
            sys.stdout.write(
                f"Pruneloop is up after {time.monotonic() - started:.1f} s: {system.url}\n"
                f"admin token: {system.admin_token_file}\nlogs: {folders.log_dir}\nCtrl-C drains and stops.\n"
            )
            sys.stdout.flush()
            system.supervise()
        finally:
            system.stop()
    return 0


def free_port(host: str) -> int:
    """Return a port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host or "127.0.0.1", 0))
        return int(probe.getsockname()[1])
