"""``Client``: jobs and fronts as objects, against the application in this process."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from matplotlib.axes import Axes

from client import Client, MeasuredFront
from client.in_process import AppTransport
from domain.artifact import digest_of
from domain.errors import Invalid, NotFound, Unavailable, WrongState
from domain.front import Front
from domain.job import JobState
from tests.unit.api.conftest import World, routes, world
from tests.unit.api.fakes import ADMIN_TOKEN, event
from tests.unit.api.messages import SPEC
from tests.unit.api.test_uploads import ONNX
from tests.unit.client.points import point

__all__ = ["routes", "world"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def pruneloop(world: World) -> Iterator[Client]:
    with Client(app=world.app, token=ADMIN_TOKEN) as client:
        yield client


@pytest.fixture
def front(pruneloop: Client) -> MeasuredFront:
    slow = point(3, 1.5, accuracy=0.975)
    lossy = point(4, 4.0, accuracy=0.8, within_max_drop=False)
    return MeasuredFront(
        pruneloop.api,
        Front(target=0, is_final=True, dense=(point(None),), items=(lossy, point(7, 2.5), slow)),
    )


def test_a_job_is_an_object(pruneloop: Client, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("model: {name: resnet8}\ndata: {name: mnist-5k}\ntargets: [{}]\n")
    job = pruneloop.submit(file)
    assert job.view.spec.model.name == "resnet8"
    assert pruneloop.job(job.id).state is JobState.QUEUED
    assert job.pause().state is JobState.PAUSED
    assert job.resume().state is JobState.QUEUED
    assert job.trials() == []
    assert len(job.front()) == 0 and job.front().best is None
    assert job.cancel().state is JobState.CANCELLED
    assert job.wait(timeout_s=5).state is JobState.CANCELLED
    with pytest.raises(WrongState):
        job.stop()
    with pytest.raises(NotFound):
        pruneloop.job("nope")
    with pytest.raises(Invalid, match="cannot be read"):
        pruneloop.submit(tmp_path / "absent.yaml")


def test_events_of_a_running_job_stream_from_the_application(pruneloop: Client, world: World) -> None:
    job = pruneloop.submit(SPEC)
    world.store.events_by_job[job.id] = [event(1), event(2)]
    seen = job.watch()
    assert [next(seen).id, next(seen).id] == [1, 2]
    # The job still runs: what happens now reaches the same stream, which ends with the job.
    world.store.events_by_job[job.id].append(event(3))
    assert next(seen).id == 3
    ender = threading.Timer(0.1, job.cancel)
    ender.start()
    assert all(one.id > 3 for one in seen)
    ender.join()


def test_watching_and_waiting_end_when_their_time_is_up(pruneloop: Client) -> None:
    job = pruneloop.submit(SPEC)
    for look in (lambda: list(job.watch(timeout_s=0.3)), lambda: job.wait(timeout_s=0.1)):
        with pytest.raises(Unavailable) as caught:
            look()
        assert caught.value.code == "still_running"


def test_a_file_says_by_its_name_what_it_is(pruneloop: Client, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(ONNX)
    assert pruneloop.upload(model).digest == digest_of(ONNX)
    with pytest.raises(Invalid, match="give `kind`"):
        pruneloop.upload(tmp_path / "model.bin")


def test_a_front_is_a_table(front: MeasuredFront) -> None:
    table = front.to_dataframe()
    assert list(table["speedup"]) == [1.0, 4.0, 2.5, 1.5]
    assert table["trial"].isna().tolist() == [True, False, False, False]
    assert (table["latency_low_ms"] < table["latency_ms"]).all()
    assert "2.5" in front._repr_html_()


def test_the_best_is_the_fastest_that_keeps_within_the_drop(front: MeasuredFront) -> None:
    assert front.best is not None and front.best.trial == 7
    assert [one.trial for one in front] == [4, 7, 3]


def test_a_front_is_a_picture(front: MeasuredFront, tmp_path: Path) -> None:
    axes = front.plot()
    assert isinstance(axes, Axes)
    assert {text.get_text() for text in axes.texts} == {"4.00x", "2.50x", "1.50x"}
    assert "1000 test samples" in axes.get_ylabel()
    axes.figure.savefig(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000


def test_files_come_down_verified(pruneloop: Client, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(ONNX)
    digest = pruneloop.upload(model).digest
    found = Front(
        target=0,
        is_final=True,
        dense=(),
        items=(point(7, 2.5, artifacts=[{"format": "onnx", "digest": digest, "size_bytes": len(ONNX)}]),),
    )
    (path,) = MeasuredFront(pruneloop.api, found).download(tmp_path / "models")
    assert path.read_bytes() == ONNX
    assert path.name == "t0-trial-007-fp32.onnx"


def test_in_process_a_token_is_needed_as_anywhere(world: World) -> None:
    with pytest.raises(Invalid, match="token"):
        Client(app=world.app)


def test_a_crash_of_the_application_is_a_500_and_a_silent_one_a_timeout() -> None:
    async def crashes(scope: object, receive: object, send: object) -> None:
        raise RuntimeError("boom")

    async def hangs(scope: object, receive: object, send: object) -> None:
        import asyncio

        await asyncio.sleep(3600)

    with AppTransport(crashes) as transport, httpx.Client(transport=transport, base_url="http://x") as http:
        assert http.get("/").status_code == 500
    with (
        AppTransport(hangs) as transport,
        httpx.Client(transport=transport, base_url="http://x") as http,
        pytest.raises(httpx.ReadTimeout),
    ):
        http.get("/", timeout=0.2)


def test_types_ship_with_the_packages_a_user_of_the_client_imports() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("client", "domain", "api"):
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in data[package]


def test_a_job_is_planned_cloned_and_found_by_its_labels(pruneloop: Client, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("labels: {team: vision}\nmodel: {name: resnet8}\ndata: {name: mnist-5k}\ntargets: [{}]\n")
    assert pruneloop.plan(file).cost.trials == 40
    assert pruneloop.jobs() == [], "a plan stores nothing"
    job = pruneloop.submit(file)
    again = pruneloop.clone(job, seed=4)
    assert (again.view.spec.seed, again.view.spec.labels) == (4, {"team": "vision"})
    other = pruneloop.submit(SPEC)
    assert {one.id for one in pruneloop.jobs(labels=["team=vision"])} == {job.id, again.id}
    assert {one.id for one in pruneloop.jobs()} == {job.id, again.id, other.id}
