"""The weight level: probed first, tried on the front where a measurement shows a gain, kept off it where it shows none."""

from __future__ import annotations

from itertools import pairwise

from domain.job import JobState
from search.finals import finalists, search_front
from search.front import build_front
from search.gaps import speedups_of_use
from search.loop import SearchLoop
from search.models import fit_models, network_of
from search.probes import count_probed
from search.space import SearchSpace
from search.told import told_of
from search.view import View
from search.zeros import PATTERNS, pays
from tests.unit.search.fakes import FakeLauncher, World, make_spec
from tests.unit.search.surfaces import MANY

LEVELS = ["block", "channel", "weight"]


def run(gain: dict[str, float], *, trials: int = 30, levels: list[str] = LEVELS) -> View:
    world = World(groups=MANY)
    world.builder.zeros_gain = gain
    job, _ = world.create_job(make_spec(budget={"trials": trials}, objective={"max_drop": 0.1}, levels=levels))
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    SearchLoop(world, FakeLauncher()).run(lease, until=lambda: False)
    return View(world.snapshot(job.id))


def test_where_zeros_buy_no_time_they_are_probed_once_said_so_and_kept_off_the_front():
    view = run({})
    assert view.job.state is JobState.SUCCEEDED
    with_zeros = [trial for trial in view.trials_of(0) if trial.candidate.zeros]
    assert [trial.candidate.zeros for trial in with_zeros] == list(PATTERNS)
    assert all(not trial.candidate.zeros for trial in search_front(view, 0))
    assert all(point.zeros == "" for point in build_front(view.snapshot, 0).items)
    told = view.job.report["weights"]["0"]  # type: ignore[index, call-overload]
    for pattern in PATTERNS:
        assert told[pattern]["pays"] is False and "not faster" in told[pattern]["says"]
        assert told[pattern]["compressed_bytes"] < told[pattern]["dense_compressed_bytes"]
        low, high = told[pattern]["speedup_ci"]
        assert low < 1.0 < high


def test_a_pattern_that_pays_is_tried_on_points_of_the_front_with_what_they_were_recovered_to():
    view = run({"2:4": 1.5})
    assert pays(view, 0, "2:4") and not pays(view, 0, "row:0.8")
    with_zeros = [trial for trial in view.trials_of(0) if trial.candidate.zeros == "2:4"]
    assert len(with_zeros) > 3
    for trial in with_zeros[1:]:
        build = view.builds_by_id[trial.build_id or ""]
        start = build.request.start  # type: ignore[union-attr]
        assert start is not None and start.candidate.widths == trial.candidate.widths and not start.candidate.zeros
        assert build.request.candidate.recovery.epochs > 0  # type: ignore[union-attr]
    assert any(trial.candidate.zeros for trial in finalists(view, 0))
    assert any(point.zeros == "2:4" for point in build_front(view.snapshot, 0).items)
    # Every second trial at most: widths go on being learnt.
    zeros = [bool(trial.candidate.zeros) for trial in view.trials_of(0)]
    after_probes = zeros[zeros.index(True) + len(PATTERNS) :]
    assert not any(one and other for one, other in pairwise(after_probes))


def test_predictors_and_sampler_learn_nothing_from_zeros():
    view = run({"2:4": 2.0})
    with_zeros = [trial for trial in view.trials_of(0) if trial.candidate.zeros]
    assert all(told_of(trial, view).kind == "fail" for trial in with_zeros)  # type: ignore[union-attr]
    models = fit_models(view, 0)
    assert models.latency["fp32"].points == len(view.succeeded(0)) - len(with_zeros) + count_probed(view, 0)


def test_what_zeros_bought_does_not_move_the_samplers_range():
    view = run({"2:4": 100.0})
    with_zeros = [1 / trial.values.latency_ratio for trial in view.succeeded(0) if trial.candidate.zeros == "2:4"]
    assert max(with_zeros) > 50 > speedups_of_use(view, 0)[0]


def test_no_other_candidate_is_cut_from_a_network_with_zeros():
    view = run({"2:4": 2.0})
    for build in view.snapshot.builds:
        start = getattr(build.request, "start", None)
        candidate = getattr(build.request, "candidate", None)
        if start is not None and hasattr(start, "candidate") and candidate is not None and not candidate.zeros:
            assert not start.candidate.zeros


def test_without_the_level_no_weight_is_set_to_zero():
    view = run({"2:4": 2.0}, levels=["block", "channel"])
    assert not any(trial.candidate.zeros for trial in view.trials_of(0))
    assert view.job.report["weights"] == {}


def test_the_weight_level_alone_probes_and_ends():
    view = run({"2:4": 1.4}, levels=["weight"])
    assert view.job.state is JobState.SUCCEEDED, view.job.reason
    assert {trial.candidate.zeros for trial in view.trials_of(0) if trial.build_id} == set(PATTERNS)
    (point,) = build_front(view.snapshot, 0).items
    assert point.zeros == "2:4" and point.speedup > 1.3 and set(point.candidate.values()) == {0.0}
    space = SearchSpace(network_of(view, 0), view.spec.recovery)
    assert space.network.has_channels is False
