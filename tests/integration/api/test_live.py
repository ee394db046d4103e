"""The API and its client end to end: real tables, real sockets, many callers at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from db.engine import make_engine
from db.store import SqlJobStore
from domain.errors import NotFound, WrongState
from domain.job import DeviceSelector, JobState
from domain.measurement import MeasurementRequest
from domain.ports import Event, NewMeasurement
from tests.integration.api.conftest import ADMIN, Live, make_app, serving
from tests.unit.api.fakes import FakeLauncher
from tests.unit.api.messages import BASELINE, CANDIDATE, SPEC, file_of, measured
from tests.unit.api.test_access import JOINING
from tests.unit.api.test_bad_input import BAD_REQUESTS, INVALID
from tests.unit.api.test_uploads import ONNX


def ask(live: Live, method: str, path: str, token: str = ADMIN, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
    return live.http.request(method, path, headers=headers, **options)


def join(live: Live) -> dict[str, Any]:
    token = live.client.create_join_token().token
    answer = ask(live, "POST", "/v1/devices", token, json=JOINING)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_a_job_lives_through_the_wire(live: Live) -> None:
    job = live.client.submit(SPEC)
    assert live.client.job(job.id).state is JobState.QUEUED
    assert live.client.pause(job.id).state is JobState.PAUSED
    assert live.client.resume(job.id).state is JobState.QUEUED
    assert live.client.cancel(job.id).state is JobState.CANCELLED
    with pytest.raises(WrongState):
        live.client.pause(job.id)
    assert live.client.front(job.id).items == ()
    with pytest.raises(NotFound, match="no target 5"):
        live.client.front(job.id, 5)


def test_one_key_makes_one_job_however_many_send_it_at_once(live: Live) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: live.client.submit(SPEC, idempotency_key="same").id, range(16)))
    assert len(set(ids)) == 1


def test_every_page_is_read_once(live: Live) -> None:
    made = {live.client.submit({**SPEC, "name": f"page {index}"}).id for index in range(7)}
    seen: list[str] = []
    token = ""
    while True:
        page = ask(live, "GET", "/v1/jobs", params={"page_size": 3, "page_token": token}).json()
        seen += [item["id"] for item in page["items"]]
        token = page["next_page_token"]
        if not token:
            break
    assert len(seen) == len(set(seen))
    assert made <= set(seen)


@pytest.mark.parametrize(("body", "field"), INVALID.values(), ids=INVALID.keys())
def test_bad_bodies_never_reach_the_tables(live: Live, body: str, field: str) -> None:
    answer = ask(live, "POST", "/v1/jobs", content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, field


@pytest.mark.parametrize(("method", "path", "field"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_bad_paths_never_reach_the_tables(live: Live, method: str, path: str, field: str) -> None:
    assert ask(live, method, path).status_code == 422, field


@pytest.mark.parametrize("token", ["garbage", "W10", "eyJhIjoxfQ", "////", "0"])
def test_a_made_up_page_token_is_422(live: Live, token: str) -> None:
    job = live.client.submit(SPEC)
    for path in ("/v1/jobs", "/v1/devices", f"/v1/jobs/{job.id}/trials"):
        assert ask(live, "GET", path, params={"page_token": token}).status_code == 422, path
    # That list is made whole every time; its tokens are offsets.
    assert ask(live, "GET", f"/v1/jobs/{job.id}/artifacts", params={"page_token": token}).status_code in {200, 422}


def test_a_stream_follows_a_job_live_and_ends_with_it(live: Live) -> None:
    job = live.client.submit(SPEC)
    seen: list[Event] = []
    watcher = threading.Thread(target=lambda: seen.extend(live.client.watch(job.id)), daemon=True)
    watcher.start()
    time.sleep(0.3)
    live.client.pause(job.id)
    live.client.resume(job.id)
    live.client.cancel(job.id)
    watcher.join(10)
    assert not watcher.is_alive()
    assert [event.id for event in seen] == sorted({event.id for event in seen})
    assert len(seen) >= 3
    assert [event.id for event in live.client.watch(job.id, after=seen[0].id)] == [event.id for event in seen[1:]]


def test_streams_do_not_take_the_threads_of_other_routes(live: Live) -> None:
    jobs = [live.client.submit(SPEC) for _ in range(30)]
    started = [threading.Thread(target=lambda i=job.id: list(live.client.watch(i)), daemon=True) for job in jobs]
    for thread in started:
        thread.start()
    time.sleep(0.5)
    before = time.monotonic()
    assert ask(live, "GET", "/healthz").status_code == 200
    assert live.client.jobs(limit=1)
    assert time.monotonic() - before < 5
    for job in jobs:
        live.client.cancel(job.id)
    for thread in started:
        thread.join(20)
    assert not any(thread.is_alive() for thread in started)


def test_a_join_token_lets_one_device_in_however_many_try_at_once(live: Live) -> None:
    token = live.client.create_join_token().token
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: ask(live, "POST", "/v1/devices", token, json=JOINING).status_code, range(8)))
    assert sorted(codes) == [201] + [401] * 7


def test_a_device_claims_tells_and_is_fenced(live: Live) -> None:
    device, other = join(live), join(live)
    own, claim = device["device_token"], f"/v1/devices/{device['device_id']}/claim"
    ask(live, "POST", f"/v1/devices/{other['device_id']}/drain")
    job = live.client.submit(SPEC)
    lease = live.store.lease_search("test", lease_s=30, job_id=job.id)
    assert lease is not None
    request = MeasurementRequest(runtime="onnxruntime", baseline=file_of(BASELINE), candidates=(file_of(CANDIDATE),))
    selector = DeviceSelector(id=device["device_id"])
    # The device of this test's inventory names no runtime: it must say first that it has one.
    inventory = {
        **JOINING["inventory"],
        "runtimes": [{"name": "onnxruntime", "available": True, "formats": ["onnx"], "precisions": ["fp32"]}],
    }
    ask(live, "POST", f"/v1/devices/{device['device_id']}/heartbeat", own, json={"inventory": inventory})
    row = live.store.add_measurement(lease, NewMeasurement(key="k", target=0, selector=selector, request=request))
    claimed = ask(live, "POST", claim, own).json()["claim"]
    assert (claimed["measurement_id"], claimed["attempt"]) == (row.id, 1)
    running = live.client.job(job.id).progress.measurements_running
    assert [(item.device, item.target) for item in running] == [("box", 0)]
    # Asked again, it gets its own back as a new attempt, and the first attempt is worth nothing any more.
    assert ask(live, "POST", claim, own).json()["claim"]["attempt"] == 2
    path = f"/v1/measurements/{row.id}/outcome"
    stale = ask(live, "PUT", path, own, json={"attempt": 1, "outcome": measured()})
    assert (stale.status_code, stale.json()["code"]) == (409, "stale_attempt")
    strange = ask(live, "PUT", path, other["device_token"], json={"attempt": 2, "outcome": measured()})
    assert strange.status_code == 409
    body = {"attempt": 2, "outcome": measured()}
    assert ask(live, "PUT", path, own, json=body).status_code == 204
    assert ask(live, "PUT", path, own, json=body).status_code == 204
    assert ask(live, "GET", f"/v1/measurements/{row.id}").json()["state"] == "done"
    assert ask(live, "POST", claim, own).json()["claim"] is None


def test_a_removed_device_is_nobody_at_once(live: Live) -> None:
    device = join(live)
    own = f"/v1/devices/{device['device_id']}"
    assert ask(live, "GET", own, device["device_token"]).status_code == 200
    live.client.remove_device(device["device_id"])
    assert ask(live, "POST", f"{own}/claim", device["device_token"]).status_code == 401
    assert ask(live, "POST", f"{own}/resume").status_code == 409


def test_a_file_goes_up_and_comes_down(live: Live, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(ONNX)
    ref = live.client.upload_artifact(source, "onnx")
    assert live.client.download(ref.digest, tmp_path / "copy.onnx").read_bytes() == ONNX


def test_ready_and_metrics_read_the_tables(live: Live) -> None:
    live.client.submit(SPEC)
    assert ask(live, "GET", "/readyz").json()["checks"]["database"] == "ok"
    assert 'pruneloop_jobs{stage="queued",state="QUEUED"}' in ask(live, "GET", "/metrics").text


def test_a_database_that_is_away_is_503_and_the_process_still_healthy(tmp_path: Path) -> None:
    engine = make_engine("postgresql://nobody@127.0.0.1:9/nothing")
    app = make_app(SqlJobStore(engine), FakeLauncher(), tmp_path)
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        assert http.get("/healthz").status_code == 200
        for path in ("/readyz", "/v1/jobs"):
            answer = http.get(path, headers={"Authorization": "Bearer x"})
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert answer.headers["retry-after"]
    engine.dispose()
