"""The loop, closed, on real data: a job over REST, real builds, real measurements, a front whose files give what it says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import optuna
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from client.api import PruneloopClient
from db.artifacts import FileArtifactStore
from domain.errors import Invalid, Unauthorized
from domain.front import Front
from domain.job import DataSpec, JobState
from pruning.datasets import load_data
from pruning.names import BUILTIN_MODELS
from tests.e2e.conftest import System
from workers.servers.folders import prepare_folders
from workers.servers.postgres import find_postgres
from workers.servers.valkey import find_valkey

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

JOB = {
    "name": "a small one",
    "model": {"name": "resnet8", "params": {"width": 16}},
    "data": {"name": "mnist-5k"},
    "targets": [{"speedup": 1.5}],
    "objective": {"max_drop": 0.05},
    "budget": {"trials": 4, "wall_s": 400},
    "recovery": {"epochs": 0.5},
    "final": {"keep": 2, "epochs": 0.5},
}


@pytest.fixture(scope="module")
def finished(system: System) -> str:
    """A job that ran to its end."""
    with system.client() as client:
        job = client.submit(JOB)
        view = client.wait(job.id, timeout_s=400)
        assert view.state is JobState.SUCCEEDED, view.reason
        return job.id


def _front(system: System, job_id: str) -> Front:
    with system.client() as client:
        return client.front(job_id)


def test_the_front_is_measured_and_faster_than_the_dense_model(system: System, finished: str) -> None:
    front = _front(system, finished)
    assert front.is_final
    assert front.items
    dense = front.dense[0]
    assert dense.trial is None and dense.accuracy is not None and dense.accuracy > 0.95
    latencies = [point.latency_ms for point in front.items]
    assert latencies == sorted(latencies)
    fastest = front.items[0]
    assert fastest.speedup_ci[0] <= fastest.speedup <= fastest.speedup_ci[1]
    assert fastest.speedup_ci[0] > 1.1
    assert fastest.macs < dense.macs and fastest.params < dense.params


def test_every_file_gives_in_plain_onnxruntime_the_accuracy_the_front_says(
    system: System, finished: str, tmp_path: Path
) -> None:
    loaded = load_data(DataSpec(name="mnist-5k"), artifacts=FileArtifactStore(tmp_path / "none"))
    inputs, labels = loaded.test
    front = _front(system, finished)
    with system.client() as client:
        for point in (*front.dense, *front.items):
            (artifact,) = point.artifacts
            path = client.download(artifact.digest, tmp_path / "model.onnx")
            assert path.stat().st_size == artifact.size_bytes
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            answers = np.concatenate([session.run(None, {name: one[None].numpy()})[0] for one in inputs]).argmax(axis=1)
            assert float((answers == labels.numpy()).mean()) == pytest.approx(point.accuracy, abs=1e-9)


def test_each_final_comes_with_a_manifest_that_says_how_to_reproduce_it(system: System, finished: str) -> None:
    front = _front(system, finished)
    with system.client() as client:
        for point in front.items:
            assert point.manifest is not None
            answer = httpx.get(
                f"{system.url}/v1/artifacts/{point.manifest}", headers={"Authorization": f"Bearer {system.token}"}
            )
            manifest = json.loads(answer.content)
            assert point.artifacts[0].digest in answer.text
            assert finished in answer.text
            assert "pruneloop bench" in answer.text
            assert manifest
        assert client.artifacts(finished)


def test_the_job_accounts_for_its_own_overhead(system: System, finished: str) -> None:
    with system.client() as client:
        report = client.job(finished).report
    assert isinstance(report["overhead_fraction"], float)
    assert 0 <= report["overhead_fraction"] < 0.25


def test_trials_tell_why_they_ended(system: System, finished: str) -> None:
    with system.client() as client:
        trials = client.trials(finished)
    assert len(trials) >= 4
    for trial in trials:
        assert trial.state.is_terminal
        assert (trial.values is not None) or trial.reason


def test_a_finished_job_opens_in_optuna_and_in_tensorboard(system: System, finished: str, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/trials.db"
    for command in (
        ["export-study", finished, "--storage", storage],
        ["log", finished, "--tensorboard", str(tmp_path / "runs")],
        ["report", finished],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "client", *command, "--url", system.url, "--token", system.token],
            cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name=f"{finished}-target-0", storage=storage)
    with system.client() as client:
        trials = [trial for trial in client.trials(finished) if trial.target == 0]
    assert len(study.trials) == len(trials)
    assert study.best_trials
    events = EventAccumulator(str(tmp_path / "runs" / finished / "target-0"))
    events.Reload()
    assert len(events.Scalars("trial/front_size")) == len(trials)


def test_a_killed_supervisor_leaves_the_servers_and_the_next_start_finds_them(system: System, finished: str) -> None:
    folders = prepare_folders(system.data_dir)
    before = (find_postgres(folders), find_valkey(folders))
    assert before[0] is not None and before[1] is not None
    system.signal(signal.SIGKILL)
    time.sleep(1)
    system.up()
    after = (find_postgres(folders), find_valkey(folders))
    assert after[0] is not None and after[1] is not None
    assert (before[0].pid, before[1].pid) == (after[0].pid, after[1].pid)
    with system.client() as client:
        assert finished in {job.id for job in client.jobs()}
        assert len(client.devices()) == 1, "the device was joined twice"


def test_a_drained_system_comes_back_with_its_jobs(system: System, finished: str) -> None:
    started = time.monotonic()
    assert system.signal(signal.SIGTERM) == 0
    assert time.monotonic() - started < 30
    system.up()
    with system.client() as client:
        assert client.job(finished).state is JobState.SUCCEEDED
        assert client.front(finished).items


def test_a_job_survives_a_killed_system_and_pays_for_the_dense_model_once(system: System, finished: str) -> None:
    with system.client() as client:
        job = client.submit({**JOB, "name": "survivor", "seed": 0})
        deadline = time.monotonic() + 120
        while client.job(job.id).trials_asked < 1:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    system.signal(signal.SIGKILL)
    system.up()
    with system.client() as client:
        view = client.wait(job.id, timeout_s=300)
        assert view.state is JobState.SUCCEEDED, view.reason
        assert client.front(job.id).is_final


def test_an_unknown_model_is_refused_at_the_door(system: System) -> None:
    with system.client() as client, pytest.raises(Invalid) as caught:
        client.submit({**JOB, "model": {"name": "resnet9000"}})
    assert caught.value.code == "unknown_model"
    assert BUILTIN_MODELS[0] in caught.value.message


def test_nothing_answers_without_a_token(system: System) -> None:
    with PruneloopClient(system.url, "wrong") as client, pytest.raises(Unauthorized):
        client.jobs()
