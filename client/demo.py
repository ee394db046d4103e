"""``pruneloop demo``: the whole product once, end to end, on this machine, with nothing prepared."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from api.schemas.jobs import JobView
from client.api import PruneloopClient
from client.connection import local_server
from client.demo_job import demo_job
from client.follow import follow
from client.render import duration, front_table, make_console, metric_text
from client.take import fetch_points, file_name, points_of
from domain.device import Device
from domain.errors import PruneloopError, Unavailable
from domain.front import Front
from domain.job import JobState

START_TIMEOUT_S = 90.0
DEVICE_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.2
LAST_LINES = 15


def run_demo(data_dir: Path, trials: int | None = None) -> int:
    """Start everything unless it runs already, prune a model against its latency here, show the front.

    Args:
        data_dir: Where everything is kept; files of the front go to ``demo/<job>`` in it.
        trials: Candidates to try.

    Returns:
        0 with a front on the screen, 1 without, 130 after Ctrl-C.

    Raises:
        Unavailable: ``demo_start_failed`` with the last lines of the log.
    """
    console = make_console()
    with _termination_as_interrupt(), running_server(data_dir, console) as client:
        device = wait_for_device(client)
        _say(console, f"This machine is device {device.name}: {device.inventory.cpu}, {device.inventory.cores} cores.")
        job = client.submit(demo_job(trials))
        _say(console, f"Submitted job {job.id}: {job.name}.")
        try:
            view = follow(client, job.id, console)
        except KeyboardInterrupt:
            _cancel(client, job.id)
            _say(console, f"Stopped: job {job.id} is cancelled.")
            return 130
        return _show_result(client, view, data_dir, console)


@contextmanager
def running_server(data_dir: Path, console: Console) -> Iterator[PruneloopClient]:
    """Give a client of the server on a data folder; one that had to be started is stopped again at the end."""
    client = _live_client(data_dir)
    if client is not None:
        _say(console, f"Using the server that runs already: {client.base_url}.")
        with client:
            yield client
        return
    log_path = data_dir / "logs" / "up.log"
    _say(console, f"Starting PostgreSQL, Valkey, API, workers and an agent in {data_dir} (log: {log_path}).")
    started = time.monotonic()
    process = _start(data_dir, log_path)
    try:
        with _wait_for_server(process, data_dir, log_path) as client:
            _say(console, f"Up after {time.monotonic() - started:.1f} s: {client.base_url}.")
            yield client
    finally:
        _stop(process)


def wait_for_device(client: PruneloopClient, timeout_s: float = DEVICE_TIMEOUT_S) -> Device:
    """Return a device that is there and takes work.

    Raises:
        Unavailable: ``no_device`` where none comes in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for device in client.devices():
            if device.is_online and device.state == "active":
                return device
        time.sleep(POLL_S)
    raise Unavailable(
        "No device came online; run `pruneloop agent doctor`, and see logs/agent.log in the data folder.",
        code="no_device",
    )


def overhead_line(view: JobView) -> str:
    """Return where the job's time went, in a sentence; empty where the report does not say."""
    wall_s, overhead_s, fraction = (view.report.get(key) for key in ("wall_s", "overhead_s", "overhead_fraction"))
    if not (
        isinstance(wall_s, int | float) and isinstance(overhead_s, int | float) and isinstance(fraction, int | float)
    ):
        return ""
    return f"Took {duration(wall_s)}; {overhead_s:.1f} s of it ({fraction:.1%}) was neither building nor measuring."


def _show_result(client: PruneloopClient, view: JobView, data_dir: Path, console: Console) -> int:
    if view.state not in {JobState.SUCCEEDED, JobState.STOPPED}:
        _say(console, f"The job ended {view.state.value}: {view.reason or 'no reason was given'}")
        return 1
    folder = data_dir / "demo" / view.id
    is_empty = True
    for target in range(len(view.spec.targets)):
        front = client.front(view.id, target)
        taken = fetch_points(client, points_of(front), folder, format="onnx")
        (folder / f"t{target}-front.json").write_text(front.model_dump_json(indent=2) + "\n")
        console.print()
        console.print(front_table(front, view.spec, files={digest: path.name for digest, path in taken.items()}))
        _say(console, _verdict(front, view))
        is_empty = is_empty and not front.items
    _say(console, f"Files: {folder}")
    _say(console, _reproduce_line(client.front(view.id), folder))
    _say(console, overhead_line(view))
    return 1 if is_empty else 0


def _verdict(front: Front, view: JobView) -> str:
    within = [point for point in front.items if point.within_max_drop and point.trial is not None]
    if not within:
        return f"Nothing on the front stays within the allowed drop of {view.spec.objective.max_drop:g}."
    best = max(within, key=lambda point: point.speedup)
    low, high = best.speedup_ci
    return (
        f"Trial {best.trial} is {best.speedup:.2f}x [{low:.2f}, {high:.2f}] as fast as the dense model on this machine, "
        f"at {best.metric} {metric_text(best)}."
    )


def _reproduce_line(front: Front, folder: Path) -> str:
    """Return the command that measures the fastest point again, against the dense model of the same precision."""
    if not front.items or front.items[0].trial is None:
        return ""
    fastest = front.items[0]
    dense = next((point for point in front.dense if point.precision == fastest.precision), None)
    if dense is None or not dense.artifacts or not fastest.artifacts:
        return ""
    candidate, baseline = (folder / file_name(point, point.artifacts[0]) for point in (fastest, dense))
    return f"Measure it again yourself: pruneloop bench {candidate} --against {baseline}"


def _live_client(data_dir: Path) -> PruneloopClient | None:
    server = local_server(data_dir)
    if server is None:
        return None
    client = PruneloopClient(server.url, server.token)
    if client.is_alive():
        return client
    client.close()
    return None


def _start(data_dir: Path, log_path: Path) -> subprocess.Popen[bytes]:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "client", "up", "--data-dir", str(data_dir), "--port", "0"]
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C is for the demo, which cancels its job before it stops the server.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _wait_for_server(process: subprocess.Popen[bytes], data_dir: Path, log_path: Path) -> PruneloopClient:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        state = data_dir / "run" / "server.json"
        # A file that an earlier, killed server left behind names another process.
        if _pid_in(state) == process.pid and (client := _live_client(data_dir)) is not None:
            return client
        time.sleep(POLL_S)
    why = "it ended" if process.poll() is not None else f"it was not ready after {START_TIMEOUT_S:.0f} s"
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-LAST_LINES:])
    raise Unavailable(f"The server did not start: {why}. The end of {log_path}:\n{tail}", code="demo_start_failed")


def _pid_in(state: Path) -> int | None:
    try:
        pid = json.loads(state.read_text())["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid if isinstance(pid, int) else None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let the server drain; kill its group only where it does not leave."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


def _cancel(client: PruneloopClient, job_id: str) -> None:
    # The server may be on its way out as well, and the job over already: then there is nothing to cancel.
    with contextlib.suppress(PruneloopError):
        client.cancel(job_id)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that the server is stopped either way."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(console: Console, text: str) -> None:
    if text:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
