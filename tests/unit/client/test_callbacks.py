"""TensorBoard, MLflow and Weights & Biases: what is written is read back with their own readers, offline."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from client.callbacks import JobCallback, Progress, TrialNews, final_scalars
from client.callbacks.tensorboard import TensorboardCallback
from domain.front import Front
from domain.job import JobState
from domain.trial import Trial, TrialState
from tests.unit.client.points import point
from tests.unit.client.trials import trial
from tests.unit.client.views import view

TRIALS = (
    trial(0, 0.02, 0.8),
    trial(1),
    trial(2, 0.05, 0.4),
    trial(3, 0.06, 0.5),
    trial(4, 0.01, 0.9, target=1),
)
FRONT = Front(target=0, is_final=True, dense=(point(None),), items=(point(2, 2.5), point(0, 1.25)))


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        if os.environ.get("PRUNELOOP_TEST_TRACKERS"):
            pytest.fail(f"{package} is to be there: `make test-trackers` installs it")
        pytest.skip(f"{package} is not installed: make test-trackers")


def tell(callback: JobCallback) -> None:
    callback.started(view(targets=2))
    progress = Progress()
    for seen in (TRIALS[:2], TRIALS):  # as a running job grows
        for news in progress.news(seen):
            callback.trial_ended(news)
    callback.ended(view(targets=2, state=JobState.SUCCEEDED), [FRONT, FRONT.model_copy(update={"target": 1})])


def test_every_trial_is_told_once_with_the_front_as_of_then() -> None:
    progress = Progress()
    news = [*progress.news(TRIALS[:2]), *progress.news(TRIALS[:2]), *progress.news(TRIALS)]
    assert [one.trial.number for one in news] == [0, 1, 2, 3, 4]
    assert [one.step for one in news] == [1, 2, 3, 4, 1]
    assert [[at.number for at in one.front] for one in news] == [[0], [0], [2, 0], [2, 0], [4]]
    assert news[2].scalars["speedup"] == pytest.approx(2.5)
    assert news[2].scalars["hypervolume"] == pytest.approx(0.2 * 0.98 + 0.4 * 0.95)
    assert "speedup" not in news[1].scalars


def test_a_running_trial_is_not_told() -> None:
    running = trial(0, finished_at=None, state=TrialState.BUILDING)
    assert Progress().news([running]) == []


def test_the_best_of_a_front_keeps_within_the_drop() -> None:
    lossy = point(9, 9.0, within_max_drop=False)
    found = final_scalars(FRONT.model_copy(update={"items": (lossy, *FRONT.items)}))
    assert found["best_speedup"] == 2.5
    assert found["points"] == 3


def test_tensorboard_reads_scalars_and_fronts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(TensorboardCallback(tmp_path))
    events = EventAccumulator(str(tmp_path / "job1" / "target-0"))
    events.Reload()
    assert [(one.step, round(one.value, 4)) for one in events.Scalars("trial/speedup")] == [
        (1, 1.25),
        (3, 2.5),
        (4, 2.0),
    ]
    assert [one.step for one in events.Images("trial/front")] == [1, 3], "a front is drawn when it changes"
    assert events.Images("final/front")[0].encoded_image_string.startswith(b"\x89PNG")
    assert events.Scalars("final/best_speedup")[0].value == pytest.approx(2.5)
    assert events.Scalars("trial/speedup")[0].wall_time == TRIALS[0].finished_at.timestamp()  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore")  # of MLflow's own database code
def test_mlflow_keeps_a_run(tmp_path: Path) -> None:
    needs("mlflow")
    from mlflow import MlflowClient

    from client.callbacks.mlflow import MlflowCallback

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(tracking_uri=uri).create_experiment("pruneloop", artifact_location=str(tmp_path / "artifacts"))
    callback = MlflowCallback(uri)
    tell(callback)
    run = MlflowClient(tracking_uri=uri).get_run(callback.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["pruneloop.job"] == "job1"
    assert json.loads(run.data.params["model"])["name"] == "resnet8"
    assert run.data.metrics["target_0/final/best_speedup"] == 2.5
    history = MlflowClient(tracking_uri=uri).get_metric_history(callback.run_id, "target_0/speedup")
    assert [(one.step, one.value) for one in history] == [(1, 1.25), (3, 2.5), (4, 2.0)]
    (stored,) = (tmp_path / "artifacts").rglob("front-target-0.json")
    assert Front.model_validate_json(stored.read_text()) == FRONT


def offline_records(data: bytes) -> list[bytes]:
    """Return the records of a .wandb file: a LevelDB log of 32 KiB blocks after seven bytes of header."""
    records: list[bytes] = []
    place, part = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in {1, 4}:  # whole, or last of several
            records.append(part)
            part = b""
    return records


@pytest.mark.filterwarnings("ignore")  # of the library's own threads
def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    from wandb.proto import wandb_internal_pb2

    from client.callbacks.wandb import WandbCallback

    monkeypatch.setenv("WANDB_SILENT", "true")
    tell(WandbCallback(mode="offline", folder=tmp_path))
    (file,) = tmp_path.rglob("*.wandb")
    logged: dict[str, list[str]] = {}
    for data in offline_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            logged.setdefault(name, []).append(item.value_json)
    assert [round(float(value), 4) for value in logged["target_0/speedup"]] == [1.25, 2.5, 2.0]
    assert logged["target_0/trial"][:4] == ["1", "2", "3", "4"]  # the front's table comes at the last of them


class Broken:
    def started(self, job: object) -> None: ...

    def trial_ended(self, news: TrialNews) -> None:
        raise RuntimeError("full disk")

    def ended(self, job: object, fronts: object) -> None: ...


def test_what_a_callback_raises_reaches_its_caller() -> None:
    with pytest.raises(RuntimeError, match="full disk"):
        tell(Broken())


def test_trials_without_an_end_time_still_have_an_order() -> None:
    trials: list[Trial] = [trial(1, 0.1, 0.5, finished_at=None), trial(0, 0.1, 0.5, finished_at=None)]
    assert [news.trial.number for news in Progress().news(trials)] == [0, 1]
