"""Devices that failed their health check: what they may still do, and what is measured again because of them."""

from __future__ import annotations

import pytest

from domain.device import LostRuntime, QuarantineCause
from domain.job import Job, JobState
from domain.work import WorkState
from search.devices import can_run, why_no_device
from search.front import build_front
from tests.unit.search.fakes import World, make_device, make_spec
from tests.unit.search.surfaces import MANY
from tests.unit.search.test_loop import run, start


def test_a_lost_runtime_is_told_with_its_reason_and_no_other_is_touched():
    target = make_spec(targets=[{"device": {"labels": {"class": "edge"}}}]).targets[0]
    lost = LostRuntime(cause=QuarantineCause.LATENCY, reason="The golden model does not run")
    sick = make_device("pi", labels={"class": "edge"}).model_copy(update={"lost_runtimes": {"onnxruntime": lost}})
    assert not can_run(sick, target.device, "onnxruntime")
    assert "pi: The golden model does not run" in why_no_device(target, 0, [sick])
    assert can_run(sick.model_copy(update={"lost_runtimes": {"other": lost}}), target.device, "onnxruntime")


def doubt(world: World, *endings: str) -> None:
    """Let a device fail its health check after it measured the finals whose keys end so."""
    advance = world.advance

    def doubting(timeout_s: float) -> bool:
        has_changed = advance(timeout_s)
        for key, row in world.measurement_rows.items():
            if row.key.startswith("final:") and row.key.endswith(endings) and row.state is WorkState.DONE:
                world.measurement_rows[key] = row.model_copy(update={"is_suspect": True})
        return has_changed

    world.advance = doubting


def finals_of(world: World, job: Job) -> list[str]:
    return [m.key for m in world.snapshot(job.id).measurements if m.key.startswith("final:")]


def test_suspect_finals_are_measured_again_and_the_new_numbers_count():
    world = World(groups=MANY)
    doubt(world, ":0")
    # The sick device is twice as slow for the dense model alone: its speed-ups are wrong, as those of the second are not.
    world.runner.drift = lambda m: 1.0 if m.key.endswith(":again") else 2.0
    job = start(world, budget={"trials": 16})
    run(world, job)
    assert world.job(job.id).state is JobState.SUCCEEDED
    first, again = finals_of(world, job)
    assert again == f"{first}:again"
    front = build_front(world.snapshot(job.id), 0)
    assert front.is_final and front.items
    assert not any(point.is_suspect for point in (*front.dense, *front.items))
    assert len({point.trial for point in front.items}) == len(front.items), "a trial stands there twice"
    assert front.dense[0].latency_ms == pytest.approx(10.0, rel=0.2), "of the second session"


def test_a_device_that_never_gets_well_does_not_hold_the_job_for_ever_and_its_points_stay_marked():
    world = World(groups=MANY)
    doubt(world, "")
    job = start(world, budget={"trials": 16})
    run(world, job)
    assert world.job(job.id).state is JobState.SUCCEEDED
    assert len(finals_of(world, job)) == 3
    front = build_front(world.snapshot(job.id), 0)
    assert front.is_final and all(point.is_suspect for point in front.items)
