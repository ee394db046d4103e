"""Stopping, rejecting, choosing finals, accounting, predicting: the pure parts, each by hand."""

from __future__ import annotations

from datetime import timedelta

import pytest

from domain.job import JobVerb
from domain.ports import JobSnapshot
from domain.trial import TrialState
from domain.work import WorkState
from search.accounting import FINAL_PLAN_S, elapsed_s, time_report, union_s
from search.actions import Report
from search.decide import decide
from search.devices import can_run, why_no_device
from search.finals import (
    LEAST_PLAN_S,
    are_built,
    final_epochs,
    final_request,
    pick,
    runners_up,
    search_front,
    useful_of,
)
from search.loop import SearchLoop
from search.recipe import rate_of, stretch_of
from search.rejecting import why_rejected
from search.reserve import affordable, final_build_s, final_s, in_flight_s, reserve_s, search_ends_s
from search.stopping import growth, has_plateaued, is_searched_out, plateau_length
from search.told import allowed_error, negligible_error
from search.view import View, content_key
from tests.unit.search.fakes import START, FakeLauncher, World, make_device, make_spec
from tests.unit.search.surfaces import MANY


def searched(trials: int = 24, **spec: object) -> tuple[World, View]:
    world = World(groups=MANY)
    job, _ = world.create_job(make_spec(budget={"trials": 200}, **spec))
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None

    def is_enough() -> bool:
        done = [t for t in world.trial_rows.values() if t.state.is_terminal]
        return len(done) >= trials

    SearchLoop(world, FakeLauncher()).run(lease, until=is_enough)
    return world, View(world.snapshot(job.id))


def at(seconds: float):
    return START + timedelta(seconds=seconds)


# --- stopping
def test_a_front_that_grows_has_not_plateaued_and_one_that_stands_still_has():
    assert not has_plateaued(0.30, 0.31)
    assert has_plateaued(0.3100, 0.3101)
    assert has_plateaued(0.3, 0.3)


def test_an_empty_front_has_not_plateaued_and_a_young_search_is_not_over():
    assert not has_plateaued(0.0, 0.0)
    _, view = searched(12)
    assert not is_searched_out(view, 0, parameters=8)


def test_a_search_that_only_repeats_what_it_has_is_over():
    _, view = searched()
    best = search_front(view, 0)[0]
    later = [
        best.model_copy(
            update={"id": f"again-{n}", "number": 1000 + n, "study_number": 1000 + n, "finished_at": at(9e6)}
        )
        for n in range(20)
    ]
    rows = (*view.snapshot.trials, *later)
    repeated = View(JobSnapshot(view.job, rows, view.snapshot.builds, view.snapshot.measurements))
    assert is_searched_out(repeated, 0, parameters=8)
    assert not is_searched_out(repeated, 0, parameters=20)


def test_more_parameters_need_more_patience():
    assert plateau_length(4) == 20
    assert plateau_length(16) == 32


def test_the_hypervolume_never_shrinks_and_counts_built_trials_only():
    _, view = searched()
    areas = growth(view, 0)
    assert areas == sorted(areas)
    assert areas[-1] > 0
    assert len(areas) == sum(t.build_id is not None and t.state.is_terminal for t in view.trials_of(0))


# --- rejecting
def test_a_far_worse_and_wider_candidate_is_not_measured_but_an_unclear_one_is():
    _, view = searched()
    best = min(view.succeeded(0), key=lambda t: t.values.error)
    built = view.built(best)
    widest = best.model_copy(
        update={"candidate": best.candidate.model_copy(update={"widths": {g.name: g.channels for g in MANY}})}
    )
    lower = built.accuracy.model_copy(update={"search": built.accuracy.search - 0.05})
    heavier = built.model_copy(update={"macs": built.macs * 2, "accuracy": lower})
    assert "narrower everywhere" in why_rejected(view, widest, heavier)
    slightly = built.accuracy.model_copy(update={"search": built.accuracy.search - 0.01})
    assert why_rejected(view, widest, built.model_copy(update={"macs": built.macs * 2, "accuracy": slightly})) is None


def test_nothing_is_rejected_before_something_was_measured():
    _, view = searched()
    none_measured = View(JobSnapshot(view.job, (), view.snapshot.builds, view.snapshot.measurements))
    trial = view.succeeded(0)[0]
    ruined = view.built(trial).model_copy(
        update={"accuracy": view.built(trial).accuracy.model_copy(update={"search": 0.1})}
    )
    assert why_rejected(none_measured, trial, ruined) is None
    assert "lost" in why_rejected(view, trial, ruined)


# --- finals
def test_finals_begin_with_the_fastest_within_the_allowed_drop():
    _, view = searched()
    front = search_front(view, 0)
    limit = 1.0 - view.dense_of(0).accuracy.search + view.spec.objective.max_drop
    fastest = min((t for t in front if t.values.error <= limit), key=lambda t: t.values.latency_ratio)
    assert pick(view, 0, keep=1) == [fastest]


def test_finals_are_distinct_on_the_front_and_spread_to_its_fast_end():
    _, view = searched()
    front = search_front(view, 0)
    chosen = pick(view, 0, keep=5)
    assert len({t.number for t in chosen}) == len(chosen) == min(5, len(front))
    assert all(t in front for t in chosen)
    assert useful_of(view, 0, front)[0] in chosen


def test_what_is_of_no_use_goes_to_the_finals_last_and_no_time_is_kept_for_it():
    _, view = searched(objective={"max_drop": 0.02})
    front = search_front(view, 0)
    useful = useful_of(view, 0, front)
    assert 0 < len(useful) < len(front)
    assert max(trial.values.error for trial in useful) <= allowed_error(view, 0)
    picked = pick(view, 0, keep=100)
    numbers = [trial.number for trial in picked]
    assert sorted(numbers) == sorted(trial.number for trial in front)
    assert sorted(numbers[: len(useful)]) == sorted(trial.number for trial in useful)
    assert reserve_s(view) < sum(final_s(view, trial) for trial in picked)


def test_what_is_slower_than_a_network_that_lost_nothing_is_of_no_use():
    _, view = searched(objective={"max_drop": 0.05})
    front = search_front(view, 0)
    lossless = front[len(front) // 2]
    values = lossless.values.model_copy(update={"error": negligible_error(view, 0)})
    front[len(front) // 2] = lossless.model_copy(update={"values": values})
    assert len(useful_of(view, 0, front)) <= len(front) // 2 + 1


def test_where_nothing_is_within_the_drop_the_most_accurate_goes_to_the_finals():
    _, view = searched(objective={"max_drop": 0.0})
    front = [t for t in view.succeeded(0) if t.values.error > 0.1]
    hopeless = View(JobSnapshot(view.job, tuple(front), view.snapshot.builds, view.snapshot.measurements))
    assert pick(hopeless, 0, keep=1) == [min(front, key=lambda t: t.values.error)]


# --- accounting
def test_a_union_counts_overlaps_once():
    spans = [(at(0), at(10)), (at(5), at(12)), (at(20), at(21)), (at(2), at(3)), (at(30), at(30))]
    assert union_s(spans) == pytest.approx(13.0)


def test_time_without_work_is_overhead_but_pauses_and_waits_are_not():
    world, view = searched()
    later = world.now() + timedelta(seconds=50)
    report = time_report(view, later)
    busy_until = max(b.finished_at for b in view.snapshot.builds if b.finished_at)
    assert report["overhead_s"] >= (later - max(busy_until, world.now())).total_seconds() - 1e-6
    changed = view.job.model_copy(update={"paused_s": 20.0, "report": {**view.job.report, "waiting_s": 25.0}})
    less = time_report(View(JobSnapshot(changed, *_rows(view))), later)
    assert less["overhead_s"] == pytest.approx(report["overhead_s"] - 45.0)
    assert elapsed_s(changed, later) == pytest.approx(elapsed_s(view.job, later) - 45.0)


def _rows(view: View):
    return view.snapshot.trials, view.snapshot.builds, view.snapshot.measurements


def test_a_final_build_is_estimated_from_what_an_epoch_took():
    _, view = searched(recovery={"epochs": 1.0}, final={"epochs": 4.0})
    trial = view.succeeded(0)[-1]
    epochs, share = trial.candidate.recovery.epochs, view.built(trial).macs / view.dense_of(0).macs
    assert epochs > 1.0
    assert final_epochs(view, trial) == pytest.approx(4 * stretch_of(share), abs=0.01)
    assert final_request(view, 0, trial).epochs == final_epochs(view, trial)
    # a candidate build takes 3 s, 2 of them for its epochs: 1 s else
    assert final_build_s(view, trial) == pytest.approx(1.0 + 2.0 * final_epochs(view, trial) / epochs)


def test_a_final_is_trained_long_whatever_its_trial_was():
    _, view = searched(recovery={"epochs": 1.0}, final={"epochs": 4.0})
    trial = view.succeeded(0)[-1]
    plan = trial.candidate.recovery

    def final(**recovery: float):
        changed = trial.candidate.model_copy(update={"recovery": plan.model_copy(update=recovery)})
        return final_request(view, 0, trial.model_copy(update={"candidate": changed}))

    usual = rate_of(view.built(trial).macs / view.dense_of(0).macs)
    assert final(epochs=0.0).epochs == final_epochs(view, trial) >= 4.0, (
        "in another precision nothing was trained for the trial"
    )
    assert final(learning_rate=usual / 4).candidate.recovery.learning_rate == usual
    assert final(learning_rate=usual * 1.4).candidate.recovery.learning_rate == usual * 1.4


def test_fewer_finals_are_made_when_time_is_short_but_never_none():
    world, view = searched(final={"keep": 5, "epochs": 3.0}, objective={"max_drop": 0.05})
    many = affordable(view, world.now())[0]
    assert many == [trial.number for trial in pick(view, 0, keep=5)] and len(many) >= 3
    late = affordable(view, world.now() + timedelta(seconds=10_000))[0]
    assert late == many[:1]


def test_time_left_over_goes_to_what_comes_next_to_the_front():
    world, view = searched(final={"keep": 100, "epochs": 3.0}, objective={"max_drop": 0.05})
    picked = [trial.number for trial in pick(view, 0, keep=100)]
    chosen = affordable(view, world.now())[0]
    more = [view.trials_by_number[number] for number in chosen[len(picked) :]]
    assert chosen[: len(picked)] == picked and more
    assert all(trial.values.error <= allowed_error(view, 0) for trial in more)
    front = search_front(view, 0)
    for one in more:
        beaten = [
            o
            for o in front
            if o.values.latency_ratio <= one.values.latency_ratio and o.values.error <= one.values.error
        ]
        assert beaten, "it is no point of the front"
        assert not any(
            o.values.latency_ratio < one.values.latency_ratio and o.values.error < one.values.error for o in more
        ), "and is next to it"


def test_finals_go_where_they_add_most_not_where_nothing_else_is():
    _, view = searched(objective={"max_drop": 0.05})
    base, dense = view.succeeded(0)[0], 1.0 - view.dense_accuracy(0)
    shape = {
        "fast": (0.1, 0.14),
        "allowed": (0.2, 0.05),
        "good": (0.4, 0.02),
        "near": (0.38, 0.03),
        "slow": (0.9, 0.015),
    }
    trials = {
        name: base.model_copy(
            update={
                "id": name,
                "number": number,
                "study_number": number,
                "values": base.values.model_copy(update={"latency_ratio": ratio, "error": dense + lost}),
            }
        )
        for number, (name, (ratio, lost)) in enumerate(shape.items())
    }
    few = View(JobSnapshot(view.job, tuple(trials.values()), *_rows(view)[1:]))
    names = [trial.id for trial in pick(few, 0, keep=5)]
    assert names == ["allowed", "fast", "good", "near", "slow"]


def test_time_that_finals_did_not_need_goes_to_more_of_them():
    world, view = searched(final={"keep": 5, "epochs": 3.0}, objective={"max_drop": 0.05})
    few = pick(view, 0, keep=5)[:2]
    chosen = view.job.model_copy(update={"report": {**view.job.report, "finals": {"0": [t.number for t in few]}}})
    waiting = View(JobSnapshot(chosen, *_rows(view)))
    requests = [final_request(waiting, 0, trial) for trial in (None, *few)]
    donor = next(build for build in view.snapshot.builds if build.id == few[0].build_id)

    def after(state: WorkState, *, measurements=()) -> View:
        finals = tuple(
            donor.model_copy(update={"id": f"f{i}", "key": content_key(r), "request": r, "state": state})
            for i, r in enumerate(requests)
        )
        rows = view.snapshot.trials, (*view.snapshot.builds, *finals), (*view.snapshot.measurements, *measurements)
        return View(JobSnapshot(chosen, *rows))

    def numbers(view: View, now) -> list[int] | None:
        actions = decide(view, now=now, devices=world.devices(), parameters=0)
        found = [
            action.data["finals"]["0"] for action in actions if isinstance(action, Report) and "finals" in action.data
        ]
        return found[0] if found else None

    assert not are_built(after(WorkState.LEASED))
    built = after(WorkState.DONE)
    more = numbers(built, world.now())
    assert more[:2] == [trial.number for trial in few] and len(more) == 5 == len(set(more))
    assert numbers(built, world.now() + timedelta(seconds=10_000)) is None, "no time is left"
    session = next(m for m in view.snapshot.measurements if m.key.startswith("trial:"))
    measured = after(WorkState.DONE, measurements=(session.model_copy(update={"id": "s", "key": "final:0"}),))
    assert numbers(measured, world.now()) is None, "what is measured together is settled"


def test_what_the_dense_model_beats_is_no_runner_up():
    _, view = searched(objective={"max_drop": 0.05})
    best = min(view.succeeded(0), key=lambda trial: trial.values.error)
    worse = best.values.model_copy(update={"latency_ratio": 1.2})
    slow = best.model_copy(update={"id": "slow", "number": 900, "study_number": 900, "values": worse})
    known = {trial.number for trial in view.succeeded(0)}
    more = View(JobSnapshot(view.job, (*view.snapshot.trials, slow), *_rows(view)[1:]))
    assert runners_up(more, 0, known) == [], "alone, it would be a front of one"
    fast = slow.model_copy(update={"values": best.values})
    assert runners_up(View(JobSnapshot(view.job, (*view.snapshot.trials, fast), *_rows(view)[1:])), 0, known) == [fast]


def test_a_final_that_takes_too_long_is_passed_over_for_quicker_ones():
    world, view = searched(final={"keep": 5, "epochs": 3.0}, objective={"max_drop": 0.05})
    wanted = pick(view, 0, keep=5)
    slow = wanted[1]
    builds = tuple(
        build.model_copy(update={"finished_at": build.finished_at + timedelta(hours=1)})
        if build.id == slow.build_id and build.finished_at
        else build
        for build in view.snapshot.builds
    )
    slowed = View(JobSnapshot(view.job, view.snapshot.trials, builds, view.snapshot.measurements))
    assert affordable(slowed, world.now())[0] == [trial.number for trial in wanted if trial is not slow]


@pytest.mark.parametrize(("wall_s", "longest_s"), [(1e6, FINAL_PLAN_S), (20.0, LEAST_PLAN_S)])
def test_the_last_measurements_take_what_is_left_of_the_wall_budget(wall_s, longest_s):
    world = World(groups=MANY)
    job, _ = world.create_job(make_spec(budget={"trials": 12, "wall_s": wall_s}, objective={"max_drop": 0.1}))
    SearchLoop(world, FakeLauncher()).run(world.lease_search("test", lease_s=15.0), until=lambda: False)
    session = View(world.snapshot(job.id)).measurements["final:0"]
    assert session.request.plan.max_s == longest_s
    assert session.outcome.status == "measured"


def test_finals_never_keep_back_more_than_their_share_of_the_wall_budget():
    _, view = searched(4, final={"keep": 5, "epochs": 3.0})
    assert search_ends_s(view) == pytest.approx(view.spec.budget.wall_s - reserve_s(view) - in_flight_s(view))
    assert 3.0 <= in_flight_s(view) <= 10.0  # a build takes 3 s, a measurement 1
    _, greedy = searched(4, final={"keep": 100, "epochs": 1000.0})
    assert search_ends_s(greedy) == pytest.approx(0.6 * greedy.spec.budget.wall_s)


# --- devices
def test_a_reason_names_what_is_missing_and_what_to_do():
    target = make_spec(targets=[{"device": {"labels": {"class": "edge"}}}]).targets[0]
    assert "`pruneloop devices add --label class=edge`" in why_no_device(target, 0, [make_device()])
    edge = make_device("pi", labels={"class": "edge"})
    assert why_no_device(target, 0, [edge]) is None
    assert "paused" in why_no_device(target, 0, [edge.model_copy(update={"state": "paused"})])
    bare = edge.model_copy(update={"inventory": edge.inventory.model_copy(update={"runtimes": ()})})
    assert "agent doctor" in why_no_device(target, 0, [bare])
    assert not can_run(bare, target.device, "onnxruntime")


def test_stopping_gives_up_trials_no_device_comes_for():
    world = World(groups=MANY)
    job, _ = world.create_job(make_spec())

    def unplug(world: World) -> None:
        if len(world.trial_rows) >= 5:
            world.devices_known[0] = make_device(online=False)

    world.before_wait = unplug
    lease = world.lease_search("test", lease_s=15.0)
    SearchLoop(world, FakeLauncher()).run(lease, until=lambda: False)
    world.apply_verb(job.id, JobVerb.STOP)
    world.advance(5.0)
    lease = world.lease_search("test", lease_s=15.0)
    SearchLoop(world, FakeLauncher()).run(lease, until=lambda: False)
    assert world.job(job.id).state == "STOPPED"
    assert any(t.state is TrialState.CANCELLED for t in world.snapshot(job.id).trials)


def test_a_job_with_a_speed_up_wish_tries_a_candidate_aimed_at_it():
    _, view = searched(targets=[{"speedup": 1.6}])
    aimed = [t for t in view.trials_of(0) if (t.seed_name or "").startswith("aimed-1.6x")]
    assert len(aimed) == 1
    if aimed[0].values is not None:
        assert 1 / aimed[0].values.latency_ratio == pytest.approx(1.6, rel=0.15)


def test_a_final_session_gives_every_file_its_time_and_not_more_the_more_files_there_are():
    world = World(groups=MANY)
    job, _ = world.create_job(make_spec(budget={"trials": 20}, objective={"max_drop": 0.1}, final={"keep": 4}))
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    SearchLoop(world, FakeLauncher()).run(lease, until=lambda: False)
    session = View(world.snapshot(job.id)).measurements["final:0"]
    assert len(session.request.candidates) > 1
    assert session.request.plan.max_s == FINAL_PLAN_S  # the agent counts it for each candidate
