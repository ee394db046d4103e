"""What pictures are drawn from, over HTTP; what is in them is tested under search."""

from __future__ import annotations

import pytest

from domain.job import JobSpec, JobState
from tests.unit.api.conftest import World
from tests.unit.api.fakes import NOW

SPEC = {"model": {"name": "resnet8"}, "data": {"name": "mnist-5k"}, "targets": [{"speedup": 2.0}, {}]}


def submit(world: World, **changes: object) -> str:
    job_id: str = world.ask("POST", "/v1/jobs", json={**SPEC, **changes}).json()["id"]
    return job_id


def test_a_summary_is_a_job_without_its_spec_and_report(world: World) -> None:
    job_id = submit(world, name="one", labels={"team": "vision"})
    told = world.store.jobs_by_id[job_id]
    world.store.jobs_by_id[job_id] = told.model_copy(
        update={
            "state": JobState.SUCCEEDED,
            "finished_at": NOW,
            "trials_asked": 5000,
            "report": {"best_speedup": {"0": 2.5, "1": 3.5}},
        }
    )
    (item,) = world.ask("GET", "/v1/job_summaries").json()["items"]
    assert (item["id"], item["model"], item["labels"]) == (job_id, "resnet8", {"team": "vision"})
    assert item["best_speedup"] == 3.5
    assert item["best_speedup_by_target"] == {"0": 2.5, "1": 3.5}
    assert item["trials_budget"] == JobSpec.model_validate(SPEC).budget.trials
    assert "report" not in item and "spec" not in item


def test_a_long_job_without_a_report_is_not_read_for_a_list(world: World) -> None:
    job_id = submit(world)
    ended = {"state": JobState.CANCELLED, "trials_asked": 100_000}
    world.store.jobs_by_id[job_id] = world.store.jobs_by_id[job_id].model_copy(update=ended)
    world.store.snapshot = None  # type: ignore[method-assign, assignment]
    (item,) = world.ask("GET", "/v1/job_summaries").json()["items"]
    assert item["best_speedup"] is None


def test_summaries_take_the_filters_of_jobs_and_answer_304(world: World) -> None:
    submit(world)
    first = world.ask("GET", "/v1/job_summaries?state=QUEUED")
    assert len(first.json()["items"]) == 1
    assert world.ask("GET", "/v1/job_summaries?state=RUNNING").json()["items"] == []
    same = world.ask("GET", "/v1/job_summaries?state=QUEUED", headers={"If-None-Match": first.headers["etag"]})
    assert same.status_code == 304
    assert world.ask("GET", "/v1/job_summaries?label=%20").status_code == 422


@pytest.mark.parametrize("path", ["trial_columns", "importance"])
def test_a_target_that_is_not_there_is_404_with_how_many_there_are(world: World, path: str) -> None:
    job_id = submit(world)
    assert world.ask("GET", f"/v1/jobs/{job_id}/{path}?target=1").status_code == 200
    answer = world.ask("GET", f"/v1/jobs/{job_id}/{path}?target=2")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_target")
    assert world.ask("GET", f"/v1/jobs/none/{path}").status_code == 404


def test_a_job_that_has_not_begun_has_empty_columns_and_no_spans(world: World) -> None:
    job_id = submit(world)
    columns = world.ask("GET", f"/v1/jobs/{job_id}/trial_columns").json()
    assert columns["number"] == [] and columns["dense_latency_ms"] is None
    assert world.ask("GET", f"/v1/jobs/{job_id}/timeline").json()["spans"] == []
    assert "needed" in world.ask("GET", f"/v1/jobs/{job_id}/importance").json()["reason"]


def test_an_unknown_trial_is_404_with_the_way_to_the_list(world: World) -> None:
    job_id = submit(world)
    answer = world.ask("GET", f"/v1/jobs/{job_id}/trials/7")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_trial")
    assert world.ask("GET", f"/v1/jobs/{job_id}/trials/-1").status_code == 422


def test_capabilities_name_what_a_form_offers(world: World) -> None:
    told = world.ask("GET", "/v1/capabilities").json()
    assert told["models"] == ["resnet8"]
    assert "onnxruntime" in told["runtimes"] and "fp32" in told["precisions"]
