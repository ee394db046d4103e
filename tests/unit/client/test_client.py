"""The Python client against the application in this process, and against transports that break."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from client.api import PruneloopClient
from domain.artifact import digest_of
from domain.errors import Conflict, Forbidden, Invalid, NotFound, Unauthorized, Unavailable, WrongState
from domain.job import JobSpec, JobState
from tests.unit.api.conftest import World, routes, world
from tests.unit.api.fakes import ADMIN_TOKEN, DEVICE_TOKEN, event
from tests.unit.api.messages import SPEC
from tests.unit.api.test_uploads import ONNX

__all__ = ["routes", "world"]


def client_of(world: World, token: str = ADMIN_TOKEN) -> PruneloopClient:
    return PruneloopClient("http://server.example", token, transport=world.transport)


def test_a_job_is_submitted_read_and_steered(world: World) -> None:
    client = client_of(world)
    job = client.submit(JobSpec.model_validate(SPEC))
    assert client.job(job.id).progress.trials_budget == 40
    assert [item.id for item in client.jobs()] == [job.id]
    assert client.pause(job.id).state is JobState.PAUSED
    assert client.resume(job.id).state is JobState.QUEUED
    assert client.cancel(job.id).state is JobState.CANCELLED
    assert client.wait(job.id, timeout_s=1).state is JobState.CANCELLED
    assert client.trials(job.id) == []
    assert client.front(job.id).items == ()
    assert client.artifacts(job.id) == []


def test_yaml_is_sent_as_it_is(world: World) -> None:
    text = b"model: {name: resnet8}\ndata: {name: mnist-5k}\ntargets: [{}]\n"
    assert client_of(world).submit(text).spec.model.name == "resnet8"


def test_all_pages_are_read(world: World) -> None:
    client = client_of(world)
    for _ in range(3):
        client.submit(SPEC)
    assert len(client.jobs()) == 3
    assert len(client.jobs(limit=2)) == 2


def test_problems_come_back_as_the_errors_they_were(world: World) -> None:
    client = client_of(world)
    job = client.submit(SPEC)
    client.cancel(job.id)
    with pytest.raises(WrongState) as wrong:
        client.resume(job.id)
    assert wrong.value.metadata == {"state": "CANCELLED", "verb": "resume"}
    assert isinstance(wrong.value, Conflict)
    with pytest.raises(NotFound):
        client.job("nope")
    with pytest.raises(Unauthorized):
        client_of(world, "guess").jobs()
    with pytest.raises(Forbidden):
        client_of(world, DEVICE_TOKEN).jobs()
    with pytest.raises(Invalid) as invalid:
        client.submit({**SPEC, "seed": -1})
    assert [field.field for field in invalid.value.fields] == ["seed"]


def test_a_file_goes_up_and_comes_down_verified(world: World, tmp_path: Path) -> None:
    client = client_of(world)
    source = tmp_path / "model.onnx"
    source.write_bytes(ONNX)
    ref = client.upload_artifact(source, "onnx")
    assert ref.digest == digest_of(ONNX)
    target = client.download(ref.digest, tmp_path / "deep" / "copy.onnx")
    assert target.read_bytes() == ONNX
    assert [path.name for path in target.parent.iterdir()] == ["copy.onnx"]


def test_bytes_that_are_not_the_digests_are_never_left_behind(world: World, tmp_path: Path) -> None:
    client = client_of(world)
    source = tmp_path / "model.onnx"
    source.write_bytes(ONNX)
    ref = client.upload_artifact(source, "onnx")
    world.artifacts.local_path(ref.digest).write_bytes(ONNX[:-1] + b"x")
    with pytest.raises(Unavailable) as corrupt:
        client.download(ref.digest, tmp_path / "out" / "copy.onnx")
    assert corrupt.value.code == "artifact_corrupt"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_file_is_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no_such"):
        client_of(world).upload_artifact(tmp_path / "no_such.onnx", "onnx")


def test_events_are_watched_to_the_end(world: World) -> None:
    client = client_of(world)
    job = client.submit(SPEC)
    client.cancel(job.id)
    world.store.events_by_job[job.id] = [event(1), event(2), event(3)]
    assert [item.id for item in client.watch(job.id)] == [1, 2, 3]
    assert [item.id for item in client.watch(job.id, after=2)] == [3]


def test_a_join_token_is_made(world: World) -> None:
    made = client_of(world).create_join_token(labels={"a": "b"})
    assert f"pruneloop agent join --server http://server.example:8420 --token {made.token} && " in made.command


class Flaky(httpx.BaseTransport):
    """Breaks the first tries, then passes on."""

    def __init__(self, inner: httpx.BaseTransport, failures: int, make: Callable[[], httpx.Response] | None) -> None:
        self.inner, self.failures, self.make, self.tries = inner, failures, make, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.tries += 1
        if self.tries <= self.failures:
            if self.make is None:
                raise httpx.ConnectError("refused")
            return self.make()
        return self.inner.handle_request(request)


def test_reads_and_submits_are_tried_again(world: World) -> None:
    flaky = Flaky(world.transport, 2, None)
    client = PruneloopClient("http://server.example", ADMIN_TOKEN, transport=flaky)
    client.submit(SPEC)
    assert flaky.tries == 3
    assert len(world.store.jobs_by_id) == 1
    busy = Flaky(world.transport, 1, lambda: httpx.Response(503, json={"code": "unavailable", "detail": "soon"}))
    assert PruneloopClient("http://server.example", ADMIN_TOKEN, transport=busy).jobs()


def test_a_verb_is_not_tried_again(world: World) -> None:
    job = client_of(world).submit(SPEC)
    flaky = Flaky(world.transport, 1, None)
    client = PruneloopClient("http://server.example", ADMIN_TOKEN, transport=flaky)
    with pytest.raises(Unavailable) as away:
        client.cancel(job.id)
    assert (away.value.code, flaky.tries) == ("server_unreachable", 1)
    assert "pruneloop up" in away.value.message


def test_an_answer_of_something_else_is_no_traceback() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(502, text="<html>Bad gateway</html>"))
    client = PruneloopClient("http://server.example", "t", transport=transport)
    with pytest.raises(Unavailable, match="502"):
        client.cancel("job1")
