"""A job's trials in an Optuna storage: what Optuna's own tools read of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import optuna
import pytest
from optuna import visualization
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from domain.errors import Invalid
from domain.trial import TrialState
from search.export import export_study
from tests.unit.client.trials import trial
from tests.unit.client.views import view

TRIALS = [
    trial(0, 0.02, 0.8),
    trial(1),
    trial(2, 0.05, 0.4),
    trial(3, state=TrialState.DUPLICATE, duplicate_of=2),
    trial(4, state=TrialState.FAILED),
    trial(5, state=TrialState.BUILDING, finished_at=None),
]


@pytest.fixture(params=["sqlite", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/trials.db" if request.param == "sqlite" else f"journal:{tmp_path}/trials.log"


def load(storage: str, name: str) -> optuna.Study:
    if storage.startswith("journal:"):
        backend = optuna.storages.journal.JournalFileBackend(storage.removeprefix("journal:"))
        return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))
    return optuna.load_study(study_name=name, storage=storage)


def test_a_study_holds_what_the_trials_were(storage: str) -> None:
    (made,) = export_study(view(), TRIALS, storage)
    assert (made.study, made.added, made.trials) == ("job1-target-0", 5, 5)
    study = load(storage, made.study)
    trials = study.get_trials()
    complete, pruned = OptunaState.COMPLETE, OptunaState.PRUNED
    assert [one.state for one in trials] == [complete, pruned, complete, complete, OptunaState.FAIL]
    assert trials[2].values == trials[3].values == [0.05, 0.4]
    assert {one.user_attrs["pruneloop_trial"] for one in study.best_trials} == {0, 2, 3}
    assert study.metric_names == ["error", "latency_ratio"]
    assert trials[1].user_attrs["reason"] == "an operator is missing"
    assert trials[2].params == {"stage0": pytest.approx(0.2)}
    assert trials[2].duration is not None and trials[2].duration.total_seconds() == 25


def test_writing_again_adds_what_is_new(storage: str) -> None:
    export_study(view(), TRIALS[:2], storage)
    (again,) = export_study(view(), TRIALS, storage)
    assert (again.added, again.trials) == (3, 5)
    (once_more,) = export_study(view(), TRIALS, storage)
    assert once_more.added == 0


def test_a_target_is_a_study(storage: str) -> None:
    both = [*TRIALS, trial(6, 0.1, 0.3, target=1, study_number=0)]
    assert [one.trials for one in export_study(view(targets=2), both, storage)] == [5, 1]
    (only,) = export_study(view(targets=2), both, storage, targets=[1])
    assert only.target == 1


def test_optuna_s_own_pictures_work_on_it(storage: str) -> None:
    (made,) = export_study(view(), TRIALS, storage)
    study = load(storage, made.study)
    front = visualization.plot_pareto_front(study)
    assert (front.layout.xaxis.title.text, front.layout.yaxis.title.text) == ("error", "latency_ratio")
    assert {tuple(xy) for trace in front.data for xy in zip(trace.x, trace.y, strict=True)} == {
        (0.02, 0.8),
        (0.05, 0.4),
    }

    def ratio(one: FrozenTrial) -> float:
        return float(one.values[1])

    history = visualization.plot_optimization_history(study, target=ratio, target_name="latency ratio")
    assert list(history.data[0].y) == [0.8, 0.4, 0.4]
    for draw in (visualization.plot_slice, visualization.plot_parallel_coordinate):
        assert draw(study, target=ratio, target_name="latency ratio").data
    assert visualization.plot_timeline(study).data


@pytest.mark.skipif(os.environ.get("PRUNELOOP_TEST_TRACKERS") != "1", reason="optuna-dashboard: make test-trackers")
def test_optuna_dashboard_shows_it(storage: str) -> None:
    """Started as a user starts it, and asked over HTTP what its pages ask."""
    (made,) = export_study(view(), TRIALS, storage)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = storage.removeprefix("journal:")
    command = [str(Path(sys.executable).parent / "optuna-dashboard"), url, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None and time.monotonic() < deadline
                try:
                    (known,) = http.get("/api/studies").json()["study_summaries"]
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            assert known["study_name"] == made.study
            shown = http.get(f"/api/studies/{known['study_id']}", params={"after": 0}).json()
            assert [one["state"] for one in shown["trials"]] == ["Complete", "Pruned", "Complete", "Complete", "Fail"]
            assert shown["trials"][2]["values"] == [0.05, 0.4]
            assert "<html" in http.get("/dashboard").text.lower()
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("url", ["nonsense", "nonsense://x", "sqlite:"])
def test_a_storage_nobody_knows_is_told_what_works(url: str) -> None:
    with pytest.raises(Invalid, match="sqlite:///") as caught:
        export_study(view(), TRIALS, url)
    assert caught.value.code == "bad_storage"
