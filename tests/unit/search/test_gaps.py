"""The room left on a front, and what is tried in it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from domain.build import CandidateRequest
from domain.candidate import GroupInfo
from domain.ports import JobSnapshot
from domain.trial import TrialState
from search.chain import chain_of
from search.finals import search_front
from search.gaps import BEYOND, GAP, LEAST_ROOM, NEAR, between, gaps, speedups_of_use
from search.loop import SearchLoop
from search.models import fit_models, network_of
from search.options import Parts
from search.space import SearchSpace
from search.told import MOST_RECOVERED, allowed_drop, allowed_error, recoverable_error
from search.view import View
from tests.unit.search.fakes import FakeLauncher, World, make_spec
from tests.unit.search.surfaces import MANY


def run(
    *, max_drop: float, done: int = 30, parts: Parts | None = None, groups: tuple[GroupInfo, ...] = MANY, **spec: object
) -> View:
    world = World(groups=groups)
    job, _ = world.create_job(make_spec(budget={"trials": 200}, objective={"max_drop": max_drop}, **spec))
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    loop = SearchLoop(world, FakeLauncher(), parts=parts or Parts())
    loop.run(lease, until=lambda: len(world.trial_rows) >= done)
    return View(world.snapshot(job.id))


def of_gaps(view: View) -> list[int]:
    return [trial.number for trial in view.trials_of(0) if (trial.seed_name or "").startswith(GAP)]


def test_gaps_lie_between_neighbours_of_the_front_and_the_dense_model_widest_first():
    view = run(max_drop=0.1, done=12)
    found = gaps(view, 0)
    assert found and [gap.room for gap in found] == sorted((gap.room for gap in found), reverse=True)
    front = search_front(view, 0)
    neighbours = {(fast.number, slow.number) for fast, slow in pairwise(front)} | {(front[-1].number, None)}
    dense_error = 1.0 - view.dense_accuracy(0)
    for gap in found:
        assert (gap.fast.number, gap.slow.number if gap.slow else None) in neighbours
        assert gap.fast.values is not None
        slow = (1.0, dense_error)
        if gap.slow is not None and gap.slow.values is not None:
            slow = gap.slow.values.latency_ratio, gap.slow.values.error
        assert gap.fast.values.latency_ratio < gap.ratio < slow[0] and gap.room >= LEAST_ROOM
    # What the user has no use for widens nothing.
    beyond = dense_error + allowed_drop(view.spec)
    assert all(gap.slow is None or gap.slow.values is None or gap.slow.values.error < beyond for gap in found)


def test_what_the_finals_bring_back_makes_no_gap():
    """The fastest lost 1.4 points of the 3 that may be lost, the next to it none: there is nothing to find between them."""
    view = run(max_drop=0.03, done=12)
    dense = 1.0 - view.dense_accuracy(0)
    fast, slow = search_front(view, 0)[:2]

    def with_errors(of_fast: float, of_slow: float) -> View:
        lost = {fast.number: (0.1, of_fast), slow.number: (0.8, of_slow)}
        rows = tuple(
            trial.model_copy(
                update={"values": trial.values.model_copy(update={"latency_ratio": ratio, "error": dense + error})}
            )
            for trial in (fast, slow)
            if trial.values is not None
            for ratio, error in (lost[trial.number],)
        )
        return View(JobSnapshot(view.job, rows, view.snapshot.builds, view.snapshot.measurements))

    assert gaps(with_errors(0.014, 0.0), 0) == []
    (one, *_) = gaps(with_errors(0.034, 0.0), 0)
    assert one.room == pytest.approx(math.log(8) * (0.034 - MOST_RECOVERED))
    assert speedups_of_use(with_errors(0.014, 0.0), 0)[0] == pytest.approx(10.0)


def test_a_gap_is_filled_from_its_slower_side_about_half_way():
    view = run(max_drop=0.1)
    filled = of_gaps(view)
    assert filled
    hits = 0
    for number in filled:
        trial = view.trials_by_number[number]
        stem, _, fast = (trial.seed_name or "").removesuffix("~").removeprefix(GAP).partition("-")
        right = view.trials_by_number[int(fast)]
        build = view.builds_by_id[trial.build_id or ""]
        assert isinstance(build.request, CandidateRequest)
        if stem != "dense":
            left = view.trials_by_number[int(stem)]
            assert all(width <= left.candidate.widths[name] for name, width in trial.candidate.widths.items())
            assert build.request.start is not None
        if trial.values is not None and right.values is not None:
            hits += right.values.latency_ratio * (1 - NEAR / 4) < trial.values.latency_ratio < 1.0
    assert hits >= 0.8 * sum(view.trials_by_number[number].values is not None for number in filled)


def test_a_gap_whose_middle_is_known_is_tried_beside_it():
    view = run(max_drop=0.1, done=12)
    space = SearchSpace(network_of(view, 0), view.spec.recovery)
    models = fit_models(view, 0)
    first = between(space, view, 0, models)
    assert first is not None
    # The same table with a trial of that very network, whose name marks no new gap as tried.
    known = view.trials_of(0)[-1].model_copy(
        update={
            "id": "known",
            "number": 900,
            "study_number": 900,
            "candidate": first.candidate,
            "state": TrialState.FAILED,
        }
    )
    snapshot = view.snapshot
    more = View(JobSnapshot(view.job, (*snapshot.trials, known), snapshot.builds, snapshot.measurements))
    beside = between(space, more, 0, models)
    assert beside is not None and beside.name.rstrip("~") == first.name.rstrip("~")
    assert beside.candidate.identity != first.candidate.identity


def test_every_other_ask_after_the_chain_is_the_samplers_own():
    view = run(max_drop=0.1)
    rest = view.trials_of(0)[len(chain_of(view, 0)) :]
    own = sum(trial.seed_name is None for trial in rest)
    assert 0 < len(of_gaps(view)) <= own + 1
    assert len({name for trial in rest if (name := trial.seed_name) is not None}) == len(rest) - own  # none twice


def test_where_the_first_link_lost_too_much_the_way_back_leads_to_what_the_user_allows():
    """One point may be lost; the chain's first step costs far more, and the next begins at the dense model again."""
    fragile = tuple(
        one.model_copy(update={"sensitivity": {at: 2 * lost for at, lost in one.sensitivity.items()}}) for one in MANY
    )
    view = run(max_drop=0.01, done=26, groups=fragile)
    first, second = chain_of(view, 0)[:2]
    assert first.values is not None and first.values.error > 1.0 - view.dense_accuracy(0) + 0.03
    assert all(width >= first.candidate.widths[name] for name, width in second.candidate.widths.items())
    assert any((view.trials_by_number[number].seed_name or "").startswith(f"{GAP}dense-") for number in of_gaps(view))
    limit = 1.0 - view.dense_accuracy(0) + 0.01
    within = [trial for trial in search_front(view, 0) if trial.values is not None and trial.values.error <= limit]
    assert within


def test_without_seeds_no_gap_is_filled():
    assert of_gaps(run(max_drop=0.1, parts=Parts.without(["seeds"]))) == []


def test_the_samplers_own_candidates_are_faster_than_what_will_have_lost_nothing():
    view = run(
        max_drop=0.1, done=40, groups=tuple(one.model_copy(update={"sensitivity": {"0.75": 0.002}}) for one in MANY)
    )
    low, high = speedups_of_use(view, 0)
    known = [(1 / trial.values.latency_ratio, trial.values.error) for trial in view.succeeded(0)]
    assert low == max(speed for speed, error in known if error <= recoverable_error(view, 0)) > 1.1
    own = [trial for trial in view.trials_of(0) if trial.seed_name is None]
    ranges = [trial.distributions["speedup"]["attributes"] for trial in own]
    lows = [one["low"] for one in ranges]
    assert lows == sorted(lows) and 1.1 < lows[-1] <= low + 0.001
    assert all(one["low"] <= trial.params["speedup"] <= one["high"] for trial, one in zip(own, ranges, strict=True))
    assert high == math.inf  # nothing lost too much


def test_once_something_lost_too_much_the_sampler_does_not_go_far_beyond_what_did_not():
    view = run(max_drop=0.02, done=40)
    limit = allowed_error(view, 0)
    known = [(1 / trial.values.latency_ratio, trial.values.error) for trial in view.succeeded(0)]
    allowed = max(speed for speed, error in known if error <= limit)
    assert any(speed > allowed for speed, _ in known)
    assert speedups_of_use(view, 0)[1] == pytest.approx(BEYOND * allowed)
    last = [trial for trial in view.trials_of(0) if trial.seed_name is None][-1]
    assert (
        last.distributions["speedup"]["attributes"]["high"]
        < view.trials_of(0)[0].distributions["speedup"]["attributes"]["high"]
    )
