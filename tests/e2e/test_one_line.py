"""From pasting the line of `pruneloop devices add` to the first accepted measurement: a fresh environment, real pip, real work."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from benchmarks.tiny_onnx import write_conv_net
from db.artifacts import FileArtifactStore
from db.engine import make_engine
from db.store import SqlJobStore
from domain.device import Device
from domain.job import DeviceSelector
from domain.measurement import Measured, MeasurementPlan
from tests.e2e.conftest import System, started
from tests.hardware.conftest import Desk
from workers.servers.folders import prepare_folders
from workers.servers.postgres import start_postgres

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

MOST_S = 60.0
PATIENCE_S = 240.0
LABELS = {"class": "fresh"}


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with started("--no-agent") as running:
        yield running


@pytest.fixture(scope="module")
def desk(system: System) -> Iterator[Desk]:
    engine = make_engine(start_postgres(prepare_folders(system.data_dir)))
    artifacts = FileArtifactStore(system.data_dir / "artifacts")
    with system.client() as client:
        made = Desk(SqlJobStore(engine), artifacts, client, DeviceSelector(labels=LABELS))
        yield made
        made.close()
    engine.dispose()


def a_line(system: System) -> str:
    command = [sys.executable, "-m", "client", "devices", "add", "--label", "class=fresh"]
    done = subprocess.run(
        [*command, "--data-dir", str(system.data_dir)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "this machine only" in done.stderr, "a server on 127.0.0.1 must say that the line will not do elsewhere"
    (line,) = done.stdout.splitlines()
    return line


def fresh_environment(home: Path) -> dict[str, str]:
    """Return what a person's shell has on a fresh machine, but for where pip finds and caches its wheels."""
    pip = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True)
    python = Path(getattr(sys, "_base_executable", sys.executable)).parent
    path = f"{python}:{os.environ['PATH']}"
    return {**pip, "PIP_CACHE_DIR": cache.stdout.strip(), "HOME": str(home), "PATH": path, "LANG": "C.UTF-8"}


def step_of(line: str, part: str) -> str:
    (step,) = [step for step in line.split(" && ") if part in step]
    return step


def test_one_line_makes_a_fresh_machine_measure_within_a_minute(
    system: System, desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The wheels have been here before: another environment, with another token, is installed first.
    warm = tmp_path / "warm"
    warm.mkdir()
    line = a_line(system)
    subprocess.run(
        ["sh", "-c", " && ".join((step_of(line, "-m venv"), step_of(line, "pip install")))],
        env=fresh_environment(warm), cwd=warm, check=True, capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip
    dense, narrow = (desk.file(write_conv_net(tmp_path / f"{width}.onnx", channels=width)) for width in (16, 4))
    asked = desk.ask("waits for whoever comes", dense, narrow, MeasurementPlan())
    line = a_line(system)
    token = shlex.split(step_of(line, "agent join"))[-1]

    home = tmp_path / "home"
    home.mkdir()
    log = home / "log"
    begin_s = time.time()
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["sh", "-c", line], env=fresh_environment(home), cwd=home, stdout=out, stderr=out, start_new_session=True
        )
    try:
        seen_s = {"venv": at_once(home / ".pruneloop-agent/bin/pip", log), "install": at_once(
            home / ".pruneloop-agent/bin/pruneloop", log)}  # fmt: skip
        measurement = desk.wait(asked)
        device, checked_at = checked_device(system)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    assert isinstance(measurement.outcome, Measured), measurement.outcome
    assert measurement.started_at is not None and measurement.finished_at is not None
    seen_s |= {
        "join": device.created_at.timestamp(),
        "claim": measurement.started_at.timestamp(),
        "accepted": measurement.finished_at.timestamp(),
        "golden model": checked_at.timestamp(),
    }
    with capsys.disabled():
        sys.stdout.write("\nseconds since the line was pasted: ")
        sys.stdout.write(", ".join(f"{stage} {at_s - begin_s:.1f}" for stage, at_s in seen_s.items()) + "\n")
    assert measurement.device_id == device.id and measurement.attempt == 1
    assert seen_s["accepted"] - begin_s < MOST_S
    assert device.labels == LABELS
    assert "+" in device.inventory.agent_version, "it runs the wheel of this server"
    token_again = subprocess.run(
        ["sh", "-c", step_of(line, "agent join")],
        env=fresh_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert token_again.returncode != 0 and "used up" in token_again.stderr
    logs = [path.read_text(errors="replace") for path in system.data_dir.rglob("*.log")]
    assert logs and not any(token in text for text in logs), "the token stands in a log"


def at_once(path: Path, log: Path) -> float:
    """Wait for a file; return when it was there."""
    until_s = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < until_s, log.read_text()[-2000:]
        time.sleep(0.02)
    return time.time()


def checked_device(system: System) -> tuple[Device, datetime]:
    """Return the one device and when its first golden check was told."""
    until_s = time.monotonic() + PATIENCE_S
    with system.client() as client:
        while True:
            (device,) = client.devices()
            checks = client.health(device.id)
            if checks:
                assert checks[-1].verdict.is_good, checks[-1].reason
                return device, checks[-1].at
            assert time.monotonic() < until_s, "never checked"
            time.sleep(0.1)
