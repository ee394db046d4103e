"""What may be asked round a submission: what it would do, the same again, which there are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.api.conftest import World
from tests.unit.api.messages import SPEC


def submit(world: World, **changes: Any) -> Any:
    return world.ask("POST", "/v1/jobs", json={**SPEC, **changes})


def test_validate_only_tells_the_job_and_stores_nothing(world: World) -> None:
    answer = world.ask("POST", "/v1/jobs?validate_only=true", json=SPEC, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 200
    plan = answer.json()
    assert plan["spec"]["budget"]["trials"] == 40
    assert [match["id"] for match in plan["targets"][0]["devices"]] == ["dev1", "dev2"]
    assert plan["targets"][0]["reason"] is None
    assert plan["cost"]["measurements"] == 40 + 5 + 1
    assert plan["network"] is None and "no builder" in plan["network_reason"]
    assert not world.store.jobs_by_id and not world.store.idempotent


def test_validate_only_names_why_a_target_would_wait(world: World) -> None:
    plan = world.ask(
        "POST", "/v1/jobs?validate_only=1", json={**SPEC, "targets": [{"device": {"labels": {"class": "phone"}}}]}
    ).json()
    assert plan["targets"][0]["devices"] == []
    assert "class=phone" in plan["targets"][0]["reason"]


def test_validate_only_refuses_what_a_submission_refuses(world: World) -> None:
    answer = world.ask("POST", "/v1/jobs?validate_only=true", json={**SPEC, "seed": -1})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "seed")


def test_a_clone_is_the_same_job_but_for_the_changes(world: World) -> None:
    submit(world, labels={"team": "vision"}, seed=3)
    answer = world.ask("POST", "/v1/jobs/job1/clone", json={"seed": 4, "name": "again"})
    assert answer.status_code == 201
    assert answer.headers["location"] == "/v1/jobs/job2"
    first, clone = world.ask("GET", "/v1/jobs/job1").json()["spec"], answer.json()["spec"]
    assert {key for key in clone if clone[key] != first[key]} == {"seed", "name"}


def test_a_clone_without_a_body_is_the_same_job(world: World) -> None:
    first = submit(world).json()
    assert world.ask("POST", "/v1/jobs/job1/clone").json()["spec"] == first["spec"]


@pytest.mark.parametrize(("changes", "field"), [({"sead": 1}, "sead"), ({"budget": {"trials": 0}}, "budget.trials")])
def test_a_clone_with_bad_changes_names_the_field(world: World, changes: Any, field: str) -> None:
    submit(world)
    answer = world.ask("POST", "/v1/jobs/job1/clone", json=changes)
    assert (answer.status_code, [problem["field"] for problem in answer.json()["errors"]]) == (422, [field])


def test_a_clone_is_idempotent_by_its_key(world: World) -> None:
    submit(world)
    headers = {"Idempotency-Key": "k"}
    first = world.ask("POST", "/v1/jobs/job1/clone", headers=headers)
    again = world.ask("POST", "/v1/jobs/job1/clone", headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"


def test_a_clone_of_nothing_is_404(world: World) -> None:
    assert world.ask("POST", "/v1/jobs/nope/clone").status_code == 404


def test_jobs_are_found_by_label(world: World) -> None:
    submit(world, labels={"team": "vision", "run": "7"})
    submit(world, labels={"team": "speech"})

    def found(query: str) -> list[str]:
        return [job["id"] for job in world.ask("GET", f"/v1/jobs?{query}").json()["items"]]

    assert found("label=team%3Dvision") == ["job1"]
    assert found("label=team") == ["job1", "job2"]
    assert found("label=team&label=run%3D7") == ["job1"]
    assert found("label=team%3Dvision&label=team") == ["job1"]
    assert found("label=nobody") == []


@pytest.mark.parametrize(
    "query",
    [
        "label=%3Dvalue",
        "label=a%3D1&label=a%3D2",
        "label=" + "k" * 64,
        "created_from=yesterday",
        "created_from=2026-01-01T00:00:00",
        "state=WAITING",
    ],
)
def test_a_filter_that_cannot_be_is_422(world: World, query: str) -> None:
    assert world.ask("GET", f"/v1/jobs?{query}").status_code == 422


@pytest.mark.parametrize(
    "labels", [{"": "x"}, {"a b": "x"}, {"k": "v" * 256}, {"k": 1}, {f"k{n}": "" for n in range(33)}]
)
def test_labels_that_no_filter_could_name_are_refused(world: World, labels: Any) -> None:
    answer = submit(world, labels=labels)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("labels")


def test_a_queued_job_tells_its_place(world: World) -> None:
    submit(world)
    assert world.ask("GET", "/v1/jobs/job1").json()["queue"]["ahead"] == 0
    world.ask("POST", "/v1/jobs/job1/pause")
    assert world.ask("GET", "/v1/jobs/job1").json()["queue"] is None
