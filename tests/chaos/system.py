"""The system under test: real processes of every role, PostgreSQL and Valkey, on a folder of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from sqlalchemy import Engine

from db.engine import make_engine
from tests.chaos import audit
from tests.chaos.disk import Disk
from tests.chaos.network import Network, make_network
from tests.chaos.supervisor import AgentPlan, Plan
from workers.agent.settings import Identity
from workers.embedded import free_port
from workers.servers.folders import prepare_folders
from workers.servers.postgres import DATABASE, find_postgres, stop_postgres
from workers.servers.processes import find_process
from workers.servers.valkey import _binary

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0
BROKER_PAUSE_S = 0.3  # what a container's restart policy takes


@dataclass(frozen=True)
class Size:
    """How much of everything is started."""

    searches: int = 2
    builders: int = 2
    reapers: int = 2
    replays: int = 3
    reals: int = 1
    is_sequential: bool = False
    privileged: bool = True  # namespaces and mounts, where they are allowed


class Broker:
    """Valkey over TCP, kept running as a container is by its restart policy."""

    def __init__(self, folder: Path, host: str) -> None:
        self.host, self.port = host, free_port(host)
        self.password = secrets.token_hex(8)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False
        self._lock = threading.Lock()
        folder.mkdir(parents=True)
        self._start()
        threading.Thread(target=self._watch, name="broker", daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{self.host}:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=2)

    def kill(self, *, with_file: bool) -> None:
        """``kill -9``; with its file it comes back with what it had written, without it empty."""
        with self._lock:
            assert self._process is not None
            self._process.kill()
            self._process.wait()
            if not with_file:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir()

    def flush(self) -> None:
        with suppress(redis.RedisError):
            self.client().flushall()

    def close(self) -> None:
        self._is_over = True
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def _watch(self) -> None:
        while not self._is_over:
            time.sleep(0.05)
            with self._lock:
                is_down = self._process is None or self._process.poll() is not None
            if is_down and not self._is_over:
                time.sleep(BROKER_PAUSE_S)
                with self._lock:
                    self._start()

    def _start(self) -> None:
        command = [
            _binary(), "--port", str(self.port), "--bind", *{self.host, "127.0.0.1"}, "--requirepass", self.password,
            "--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
            "--maxmemory-policy", "noeviction", "--daemonize", "no",
        ]  # fmt: skip
        with (self._folder.parent / "valkey.log").open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


class System:
    """Start it, hurt it, close it."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.folder = Path(tempfile.mkdtemp(prefix="plc-"))
        self.folder.chmod(0o755)
        self.network: Network = make_network(namespaces=size.privileged)
        self.host = self.network.server_host
        self.port = free_port(self.host)
        self.url = f"http://{self.host}:{self.port}"
        self.broker = Broker(self.folder / "broker", self.host)
        self.folders = prepare_folders(self.folder)
        self.disk = Disk(self.folder / "artifacts", self.folder, mount=size.privileged)
        self.agents = [f"replay-{n}" for n in range(1, size.replays + 1)]
        self.agents += [f"real-{n}" for n in range(1, size.reals + 1)]
        self.engine: Engine
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start everything and wait until every agent has joined and is there."""
        plan = Plan(
            data_dir=self.folder,
            host=self.host,
            port=self.port,
            searches=self.size.searches,
            builders=self.size.builders,
            reapers=self.size.reapers,
            agents=[self._plan_of(name) for name in self.agents],
        )
        (self.folder / "plan.json").write_text(plan.model_dump_json())
        temp = self.folder / "temp"
        temp.mkdir()
        public = f"redis://{self.host}:{self.broker.port}/0"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")},
            **self.disk.environment,
            "PRUNELOOP_BROKER_URL": self.broker.url,
            "PRUNELOOP_BROKER_PUBLIC_URL": public,
            "PRUNELOOP_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(temp),
        }
        if self.size.is_sequential:
            environment["PRUNELOOP_SEARCH_WITHOUT"] = '["overlap"]'
        with (self.folder / "supervisor.log").open("ab") as out:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.supervisor", str(self.folder / "plan.json")],
                cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self.folders.run_dir / "ready").exists():
            self.check()
            assert time.monotonic() < deadline, f"not ready: {self.log('supervisor')}"
            time.sleep(0.1)
        url = f"postgresql+psycopg://postgres@/{DATABASE}?host={self.folders.postgres_socket_dir}"
        self.engine = make_engine(url, role="chaos")
        audit.install(self.engine)

    def check(self) -> None:
        """The supervisor itself must live through everything."""
        assert self._supervisor is not None and self._supervisor.poll() is None, self.log("supervisor")

    @property
    def token(self) -> str:
        return (self.folder / "admin-token").read_text().strip()

    def log(self, name: str, last: int = 3000) -> str:
        path = self.folder / f"{name}.log" if name == "supervisor" else self.folders.log_dir / f"{name}.log"
        return path.read_text(errors="replace")[-last:] if path.exists() else ""

    def processes(self, component: str) -> list[tuple[str, psutil.Process]]:
        """Return the living main processes of a component, by the supervisor's name for them."""
        names = {path.stem for path in self.folders.run_dir.glob("*.pid")}
        mine = names & set(self.agents) if component == "agent" else {n for n in names if n.split("-")[0] == component}
        found = ((name, find_process(self.folders.run_dir / f"{name}.pid")) for name in sorted(mine))
        return [(name, process) for name, process in found if process is not None]

    def owner_of(self, process: psutil.Process) -> str | None:
        """Return the name under which a worker's child holds its leases."""
        for child in process.children(recursive=True):
            with suppress(psutil.Error, OSError):
                for file in child.open_files():
                    if file.path.endswith(".name"):
                        return Path(file.path).read_text()
        return None

    def device_id(self, agent: str) -> str:
        return Identity.load(self.folder / agent).device_id

    def stop_postgres_at_once(self) -> None:
        process = find_postgres(self.folders)
        if process is not None:
            process.send_signal(signal.SIGQUIT)

    def close(self) -> None:
        self.disk.free()
        for agent in self.agents:
            self.network.mend(agent)
        if self._supervisor is not None and self._supervisor.poll() is None:
            self._supervisor.send_signal(signal.SIGTERM)
            try:
                self._supervisor.wait(90)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
        if hasattr(self, "engine"):
            self.engine.dispose()
        self.broker.close()
        stop_postgres(self.folders)
        for name in ("api", "reaper", "search", "build", *self.agents):
            for _, process in self.processes(name):
                with suppress(psutil.Error):
                    process.kill()
        self.network.close()
        self.disk.close()
        shutil.rmtree(self.folders.postgres_dir, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep_logs(self, place: Path) -> None:
        """Copy what the processes said, for who looks into a violation."""
        place.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.folders.log_dir, place, dirs_exist_ok=True)
        shutil.copy(self.folder / "supervisor.log", place)

    def _plan_of(self, name: str) -> AgentPlan:
        prefix, api, broker = self.network.attach(name, self.port, self.broker.port)
        is_replay = name.startswith("replay")
        environment = {
            "PRUNELOOP_AGENT_SERVER_URL": f"http://{api}",
            "PRUNELOOP_AGENT_QUIET_FILE": str(self.folder / "temp" / "pruneloop-quiet.lock"),
            "PRUNELOOP_AGENT_HEALTH_EVERY": "0",
        }
        if is_replay:
            environment["PRUNELOOP_AGENT_REPLAY"] = "synthetic"
        labels = {"kind": "replay" if is_replay else "real"}
        return AgentPlan(name=name, broker=broker, prefix=prefix, environment=environment, labels=labels)
