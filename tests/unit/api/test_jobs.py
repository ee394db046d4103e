from __future__ import annotations

from typing import Any

import pytest

from domain.job import JobState
from domain.work import WorkState
from tests.unit.api.conftest import World
from tests.unit.api.fakes import NOW, event
from tests.unit.api.messages import SPEC, measurement


def submit(world: World, **headers: str) -> Any:
    return world.ask("POST", "/v1/jobs", json=SPEC, headers=headers)


def in_state(world: World, state: JobState) -> None:
    world.store.jobs_by_id["job1"] = world.store.jobs_by_id["job1"].model_copy(update={"state": state})


def test_a_submitted_job_answers_201_with_its_place(world: World) -> None:
    answer = submit(world)
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    assert answer.json()["state"] == "QUEUED"
    assert answer.json()["spec"]["budget"]["trials"] == 40


def test_yaml_and_json_make_the_same_job(world: World) -> None:
    text = b"name: small\nmodel: {name: resnet8}\ndata: {name: mnist-5k}\ntargets:\n  - speedup: 2.0\n"
    answer = world.ask("POST", "/v1/jobs", content=text, headers={"Content-Type": "application/yaml; charset=utf-8"})
    assert answer.json()["spec"] == submit(world).json()["spec"]


def test_the_same_key_gives_the_first_job_again(world: World) -> None:
    first, again = submit(world, **{"Idempotency-Key": "k1"}), submit(world, **{"Idempotency-Key": "k1"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"


def test_the_same_key_with_another_job_is_refused(world: World) -> None:
    submit(world, **{"Idempotency-Key": "k1"})
    answer = world.ask("POST", "/v1/jobs", json={**SPEC, "seed": 1}, headers={"Idempotency-Key": "k1"})
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")


def test_pages_end_with_an_empty_token(world: World) -> None:
    for _ in range(5):
        submit(world)
    first = world.ask("GET", "/v1/jobs?page_size=3").json()
    second = world.ask("GET", f"/v1/jobs?page_size=3&page_token={first['next_page_token']}").json()
    assert [len(first["items"]), len(second["items"])] == [3, 2]
    assert second["next_page_token"] == ""


def test_a_page_size_is_coerced_down_not_refused(world: World) -> None:
    submit(world)
    assert world.ask("GET", "/v1/jobs?page_size=1000000").status_code == 200


def test_jobs_are_filtered_by_state(world: World) -> None:
    submit(world)
    submit(world)
    world.ask("POST", "/v1/jobs/job1/cancel")
    found = world.ask("GET", "/v1/jobs?state=QUEUED&state=RUNNING").json()["items"]
    assert [job["id"] for job in found] == ["job2"]


def test_a_job_shows_how_far_it_is(world: World) -> None:
    submit(world)
    world.store.measurements_by_id = {
        "m1": measurement("m1", state=WorkState.LEASED, device_id="dev1", attempt=2, started_at=NOW),
        "m2": measurement("m2"),
        "m3": measurement("m3", state=WorkState.LEASED, device_id="gone", attempt=1),
    }
    progress = world.ask("GET", "/v1/jobs/job1").json()["progress"]
    assert progress["trials_budget"] == 40
    assert progress["measurements_waiting"] == 1
    assert [item["device"] for item in progress["measurements_running"]] == ["box", "a device that is gone"]
    assert progress["best_speedup"] is None


def test_an_unchanged_job_costs_no_body(world: World) -> None:
    submit(world)
    first = world.ask("GET", "/v1/jobs/job1")
    again = world.ask("GET", "/v1/jobs/job1", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    world.ask("POST", "/v1/jobs/job1/pause")
    changed = world.ask("GET", "/v1/jobs/job1", headers={"If-None-Match": first.headers["etag"]})
    assert (changed.status_code, changed.json()["state"]) == (200, "PAUSED")


@pytest.mark.parametrize(
    ("verb", "state", "then"),
    [
        ("pause", JobState.RUNNING, "PAUSED"),
        ("resume", JobState.PAUSED, "QUEUED"),
        ("stop", JobState.RUNNING, "STOPPED"),
        ("cancel", JobState.RUNNING, "CANCELLED"),
    ],
)
def test_verbs_move_a_job(world: World, verb: str, state: JobState, then: str) -> None:
    submit(world)
    in_state(world, state)
    assert world.ask("POST", f"/v1/jobs/job1/{verb}").json()["state"] == then


@pytest.mark.parametrize("verb", ["pause", "resume", "stop", "cancel"])
def test_a_verb_on_a_finished_job_is_409_with_the_state(world: World, verb: str) -> None:
    submit(world)
    in_state(world, JobState.SUCCEEDED)
    answer = world.ask("POST", f"/v1/jobs/job1/{verb}")
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_state")
    assert answer.json()["metadata"] == {"state": "SUCCEEDED", "verb": verb}


@pytest.mark.parametrize("path", ["", "/trials", "/front", "/artifacts", "/events"])
def test_a_job_that_does_not_exist_is_404(world: World, path: str) -> None:
    answer = world.ask("GET", f"/v1/jobs/nope{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def stream(world: World, **headers: str) -> list[str]:
    answer = world.ask("GET", "/v1/jobs/job1/events", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [line.removeprefix("id: ") for line in answer.text.splitlines() if line.startswith("id: ")]


def test_events_end_with_the_job_and_resume_where_they_were_left(world: World) -> None:
    submit(world)
    in_state(world, JobState.SUCCEEDED)
    world.store.events_by_job["job1"] = [event(number) for number in range(1, 451)]
    assert stream(world) == [str(number) for number in range(1, 451)]
    assert stream(world, **{"Last-Event-ID": "448"}) == ["449", "450"]


def test_an_event_id_that_is_no_number_is_422(world: World) -> None:
    submit(world)
    answer = world.ask("GET", "/v1/jobs/job1/events", headers={"Last-Event-ID": "x"})
    assert answer.status_code == 422
