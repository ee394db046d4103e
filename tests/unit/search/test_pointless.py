"""What is not even built: candidates predicted to be slower than one that lost nothing."""

from __future__ import annotations

from domain.trial import TrialState
from search.loop import SearchLoop
from search.options import Parts
from search.rejecting import NOTHING_LOST, SLOWER_BY, why_not_built
from search.view import View
from tests.unit.search.fakes import FakeLauncher, World, make_spec
from tests.unit.search.surfaces import MANY


def run(*, max_drop: float = 0.1, done: int = 60, parts: Parts | None = None) -> View:
    world = World(groups=MANY)
    job, _ = world.create_job(make_spec(budget={"trials": 200}, objective={"max_drop": max_drop}))
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    SearchLoop(world, FakeLauncher(), parts=parts or Parts()).run(lease, until=lambda: len(world.trial_rows) >= done)
    return View(world.snapshot(job.id))


def test_slower_than_what_lost_nothing_is_pointless_and_faster_is_not():
    view = run(done=20)
    best = min(view.succeeded(0), key=lambda trial: trial.values.error if trial.values else 1.0)
    assert best.values is not None
    # A world in which the most accurate point lost nothing.
    for trial in view.snapshot.trials:
        if trial.values is not None:
            object.__setattr__(trial.values, "error", trial.values.error - best.values.error + 0.05)
    ratio = best.values.latency_ratio
    assert "which lost nothing" in (why_not_built(view, 0, best.candidate, ratio * SLOWER_BY * 1.01) or "")
    assert f"trial {best.number}" in (why_not_built(view, 0, best.candidate, ratio * SLOWER_BY * 1.01) or "")
    assert why_not_built(view, 0, best.candidate, ratio * 1.05) is None


def test_what_was_lost_must_be_chance_for_the_user_too():
    view = run(max_drop=0.0, done=20)
    for trial in view.succeeded(0):
        assert trial.values is not None
        lost = trial.values.error - (1.0 - view.dense_accuracy(0))
        expected = lost <= 1e-9
        assert (why_not_built(view, 0, trial.candidate, trial.values.latency_ratio * 2) is not None) >= expected
        if 0 < lost <= NOTHING_LOST:
            assert why_not_built(view, 0, trial.candidate, trial.values.latency_ratio * 1.2) is None


def test_a_pointless_ask_is_rejected_with_its_reason_and_neither_built_nor_measured():
    free = World(
        groups=[group.model_copy(update={"sensitivity": dict.fromkeys(group.sensitivity, 0.0)}) for group in MANY]
    )
    job, _ = free.create_job(make_spec(budget={"trials": 200}, objective={"max_drop": 0.3}))
    lease = free.lease_search("test", lease_s=15.0)
    assert lease is not None
    SearchLoop(free, FakeLauncher()).run(lease, until=lambda: len(free.trial_rows) >= 60)
    view = View(free.snapshot(job.id))
    pointless = [trial for trial in view.trials_of(0) if (trial.reason or "").startswith("not built")]
    assert pointless
    for trial in pointless:
        assert trial.state is TrialState.REJECTED and trial.build_id is None and trial.measurement_id is None
