"""Pruneloop itself: the real embedded system, freshly started, and a job sent to it through the public client.

The clock runs from the submission to the job's end; starting the services is not counted, as installing a peer is not. The weights
are uploaded before. Files of the provisional front are fetched while the job runs, each with the second it was first seen.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.search_quality.cells import Cell
from benchmarks.search_quality.clock import Clock
from benchmarks.search_quality.shelf import Shelf
from benchmarks.search_quality.tasks import TASKS, Task
from client.api import PruneloopClient
from client.demo import running_server, wait_for_device
from domain.artifact import ArtifactKind
from domain.job import JobState

METHOD = "ours"
MARGIN_S = 4.0
"""Taken off the job's budget: a job looks at its clock between steps, and a late front counts nothing."""
SETTING = "PRUNELOOP_"
POLL_S = 0.5
PATIENCE_S = 120.0
QUIET_S = 5.0


def job_of(
    task: Task, seed: int, budget_s: float, options: Mapping[str, Any], *, weights: str, data: str | None
) -> dict[str, Any]:
    """Return the job; ``options`` are laid over it, key by key, however deep. ``weights``, ``data``: digests of uploads."""
    job = {
        "name": f"search quality: {task.name}",
        "model": task.model_spec(weights),
        "data": task.data_spec(data),
        "targets": [{"device": {"labels": {}}, "runtime": "onnxruntime", "precision": ["fp32"]}],
        "objective": {"max_drop": 0.03},
        "budget": {"trials": 10_000, "wall_s": max(budget_s / 2, budget_s - MARGIN_S)},
        "final": {"keep": 8, "epochs": task.final_epochs},
        "seed": seed,
    }
    return _laid_over(job, options)


def job_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are keys of the job."""
    return {name: value for name, value in options.items() if not name.startswith(SETTING)}


def settings_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that are the server's settings, as environment variables: text as it is, all else as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in options.items()
        if name.startswith(SETTING)
    }


@contextmanager
def _environment(options: Mapping[str, Any]) -> Iterator[None]:
    """Have the settings of the options, and none that the caller's shell happens to hold, while a server starts."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith(SETTING)]:
        del os.environ[name]
    os.environ.update(settings_of(options))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(cell: Cell, weights: Path, data: Path | None, shelf: Shelf) -> float:
    """Run one job; the files go to the shelf. Returns the seconds from its submission to its front.

    Args:
        cell: Of the method ``ours``.
        weights: The dense weights, safetensors.
        data: The data where it is a file; None where the server has it.
        shelf: Its clock is begun anew with the submission.
    """
    task = TASKS[cell.task]
    data_dir = Path(tempfile.mkdtemp(prefix="pl-bench-"))
    data_dir.chmod(0o755)  # PostgreSQL runs as another user where we are root
    try:
        with _environment(cell.options), running_server(data_dir, Console(quiet=True)) as client:
            _wait_until_up(client, wait_for_device(client).id)
            uploads = {
                "weights": client.upload_artifact(weights, ArtifactKind.WEIGHTS).digest,
                "data": client.upload_artifact(data, ArtifactKind.DATA).digest if data is not None else None,
            }
            job = job_of(task, cell.seed, cell.budget_s, job_options(cell.options), **uploads)
            return _follow(client, job, cell.budget_s, shelf)
    finally:
        _stop_servers(data_dir)
        shutil.rmtree(data_dir, ignore_errors=True)


def _wait_until_up(client: PruneloopClient, device_id: str) -> None:
    """Wait until a device that has just started has checked all its runtimes: that is starting, and takes both cores."""
    checks, since = -1, time.monotonic()
    while checks < 1 or time.monotonic() - since < QUIET_S:
        found = len(client.health(device_id))
        if found != checks:
            checks, since = found, time.monotonic()
        if time.monotonic() - since > PATIENCE_S:
            raise SystemExit(f"Device {device_id} has not checked itself in {PATIENCE_S:.0f} s.")
        time.sleep(POLL_S)


def _follow(client: PruneloopClient, job: Mapping[str, Any], budget_s: float, shelf: Shelf) -> float:
    clock = shelf.clock = Clock(budget_s)
    job_id = client.submit(job).id
    seen: set[str] = set()
    while True:
        view = client.job(job_id)
        front = client.front(job_id)
        for point in front.items:
            for artifact in point.artifacts:
                if artifact.digest not in seen and artifact.format == "onnx":
                    seen.add(artifact.digest)
                    path = client.download(artifact.digest, shelf.folder / "fetched")
                    shelf.keep_file(path.read_bytes(), stage=point.stage, trial=point.trial, widths=point.widths)
                    path.unlink()
        now_s = clock.elapsed_s()
        if view.state.is_terminal:
            break
        if now_s > budget_s + PATIENCE_S:
            raise SystemExit(f"Job {job_id} is still {view.state} {now_s:.0f} s after it began.")
        time.sleep(POLL_S)
    if view.state is not JobState.SUCCEEDED:
        raise SystemExit(f"Job {job_id} ended {view.state}: {view.reason}")
    shelf.notes["report"] = {
        name: view.report.get(name)
        for name in ("wall_s", "work_s", "overhead_s", "overhead_fraction", "stages_s", "predictor", "problems")
    }
    shelf.notes["history"] = [
        {
            "number": trial.number,
            "seed": trial.seed_name,
            "state": trial.state,
            "asked_s": round((trial.created_at - view.created_at).total_seconds(), 1),
            "done_s": trial.finished_at and round((trial.finished_at - view.created_at).total_seconds(), 1),
            "ratio": trial.values and trial.values.latency_ratio,
            "error": trial.values and trial.values.error,
            "kept": {**trial.candidate.kept_widths, **dict.fromkeys(trial.candidate.dropped, 0)},
        }
        for trial in client.trials(job_id)
    ]
    shelf.notes["trials"] = view.progress.trials_by_state
    shelf.notes["ended_by"] = view.ended_by
    return now_s


def _stop_servers(data_dir: Path) -> None:
    from workers.servers.folders import prepare_folders
    from workers.servers.postgres import stop_postgres
    from workers.servers.valkey import stop_valkey

    folders = prepare_folders(data_dir)
    stop_valkey(folders)
    stop_postgres(folders)


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        below = both.get(key)
        both[key] = _laid_over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return both
