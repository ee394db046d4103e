"""What a job keeps for ever, on the fronts of whole simulated jobs."""

from __future__ import annotations

import re

from search.front import build_front
from tests.unit.search.fakes import MemoryArtifacts, World
from tests.unit.search.surfaces import MANY
from tests.unit.search.test_loop import run, start
from workers.retention import kept_of


def test_everything_a_front_refers_to_is_kept_and_losers_are_not() -> None:
    world, artifacts = World(groups=MANY), MemoryArtifacts()
    job = start(world, budget={"trials": 20})
    run(world, job, artifacts=artifacts)
    snapshot = world.snapshot(job.id)
    kept = kept_of(snapshot)
    front = build_front(snapshot, 0)
    named = {file.digest for point in (*front.dense, *front.items) for file in point.artifacts}
    named |= {point.manifest for point in (*front.dense, *front.items) if point.manifest is not None}
    assert len(named) >= 6
    assert named <= kept
    everything = set(re.findall("sha256:[0-9a-f]{64}", "".join(build.model_dump_json() for build in snapshot.builds)))
    assert len(everything - kept) > 10, "nothing would ever be freed"


def test_a_job_that_ended_early_keeps_its_provisional_front() -> None:
    world = World(groups=MANY)
    job = start(world, budget={"trials": 20})
    turns = iter(range(10_000))
    run(world, job, until=lambda: next(turns) > 60)
    snapshot = world.snapshot(job.id)
    front = build_front(snapshot, 0)
    assert not front.is_final and front.items
    assert {file.digest for point in front.items for file in point.artifacts} <= kept_of(snapshot)
