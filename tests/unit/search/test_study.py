"""A study rebuilt from trial rows asks what the lost one would have asked."""

from __future__ import annotations

import json

import optuna
import pytest

from domain.job import RecoverySpec
from domain.outcome import Blame
from domain.trial import TrialState
from search.finals import search_front
from search.gaps import speedups_of_use
from search.loop import SearchLoop
from search.network import Network
from search.sampler import make_sampler
from search.seeds import INSIDE
from search.space import SearchSpace
from search.study import STUCK_AFTER, TargetStudy
from search.told import allowed_drop, negligible_error, told_of
from search.view import View
from tests.unit.search.fakes import FakeLauncher, World, failed, make_spec
from tests.unit.search.surfaces import MANY


def halfway(trials: int = 30) -> tuple[World, View]:
    """A job stopped in the middle: finished, failed, duplicate and in-flight trials, all kinds."""
    world = World(groups=MANY)

    def fault(request):
        is_bad = request.kind == "candidate" and request.candidate.widths["layer2.3"] % 32 == 8
        return failed(Blame.CANDIDATE) if is_bad else None

    world.builder.fault = fault
    world.builder.mishap = lambda candidate: 0.7 if candidate.widths["layer2.1"] == 48 else 0.0
    job, _ = world.create_job(
        make_spec(budget={"trials": 100}, seed=3, targets=[{"speedup": 2.0}], objective={"max_drop": 0.04})
    )
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    SearchLoop(world, FakeLauncher()).run(lease, until=lambda: len(world.trial_rows) >= trials)
    return world, View(world.snapshot(job.id))


def study(*, preset: str = "tpe", seeds: bool = True) -> TargetStudy:
    return TargetStudy(SearchSpace(Network(MANY), RecoverySpec()), target=0, seed=3, seeds=10 * seeds, preset=preset)


def only(view: View, count: int) -> View:
    rows = view.trials_of(0)[:count]
    return View(type(view.snapshot)(view.job, tuple(rows), view.snapshot.builds, view.snapshot.measurements))


def as_running(view: View, numbers: set[int]) -> View:
    rows = tuple(
        t.model_copy(update={"state": TrialState.BUILDING, "values": None}) if t.number in numbers else t
        for t in view.snapshot.trials
    )
    return View(type(view.snapshot)(view.job, rows, view.snapshot.builds, view.snapshot.measurements))


def test_the_middle_of_a_job_holds_every_kind_of_trial():
    _, view = halfway()
    states = {t.state for t in view.snapshot.trials}
    assert {TrialState.SUCCEEDED, TrialState.INFEASIBLE, TrialState.REJECTED} <= states
    assert states & {TrialState.BUILDING, TrialState.MEASURING}


@pytest.mark.parametrize("preset", ["tpe", "nsga2", "random"])
def test_told_step_by_step_or_all_at_once_the_next_asks_are_the_same(preset):
    _, view = halfway()
    step_by_step = study(preset=preset)
    for count in range(1, len(view.trials_of(0)) + 1):
        # First everybody runs, then they finish one by one, the last asked first.
        step_by_step.sync(as_running(only(view, count), {count - 1, count - 2}))
    step_by_step.sync(view)
    at_once = study(preset=preset)
    at_once.sync(view)
    for _ in range(3):
        assert step_by_step.ask(view) == at_once.ask(view)


def test_trials_in_flight_are_attached_and_can_be_told_later():
    _, view = halfway()
    running = {t.number for t in view.snapshot.trials if t.number >= 12}
    rebuilt = study()
    rebuilt.sync(as_running(view, running))
    rebuilt.sync(view)
    whole = study()
    whole.sync(view)
    assert rebuilt.ask(view) == whole.ask(view)


def test_a_chain_broken_off_goes_on_after_a_rebuild():
    _, view = halfway()
    early = only(view, 1)
    rebuilt = study()
    rebuilt.sync(early)
    asked, lost = rebuilt.ask(early), view.trials_of(0)[1]
    assert asked.study_number == 1
    assert [(name or "").removesuffix("~") for name in (asked.seed_name, lost.seed_name)] == 2 * ["chain-2"]


def test_a_gap_in_the_rows_is_refused():
    _, view = halfway()
    rows = tuple(t for t in view.snapshot.trials if t.study_number != 5)
    broken = View(type(view.snapshot)(view.job, rows, view.snapshot.builds, view.snapshot.measurements))
    with pytest.raises(LookupError):
        study().sync(broken)


def test_asks_are_json_and_differ_between_numbers():
    _, view = halfway()
    whole = study(seeds=False)
    first, second = whole.ask(only(view, 0)), whole.ask(only(view, 0))
    assert first.params != second.params
    assert json.loads(json.dumps(first.distributions)) == first.distributions


def test_the_constraints_of_a_measured_trial_name_every_limit():
    _, view = halfway()
    measured = view.succeeded(0)[0]
    told = told_of(measured, view)
    assert told is not None
    assert list(told.constraints) == ["valid", "accuracy", "speedup"]
    assert told.constraints["speedup"] == pytest.approx(2.0 * told.values[1] - 1.0)
    drop = told.values[0] - (1.0 - view.dense_of(0).accuracy.search)
    assert told.constraints["accuracy"] == pytest.approx(drop / allowed_drop(view.spec) - 1.0)


def test_what_did_not_give_a_point_is_told_as_pruned_and_infeasible():
    _, view = halfway()
    for trial in view.snapshot.trials:
        if trial.state in {TrialState.INFEASIBLE, TrialState.REJECTED}:
            told = told_of(trial, view)
            assert told is not None
            assert told.kind == "pruned"
            assert max(told.constraints.values()) > 0


def test_optuna_still_takes_constraints_for_a_running_trial_by_its_private_id():
    """The one private name of Optuna we lean on, in the version we pin."""
    plain = optuna.create_study(
        directions=["minimize", "minimize"], sampler=make_sampler("tpe", seed=0, distributions={})
    )
    distribution = optuna.distributions.FloatDistribution(low=0.0, high=1.0)
    plain.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, params={"x": 0.5}, distributions={"x": distribution}
        )
    )
    running = optuna.trial.Trial(plain, plain.get_trials(deepcopy=False)[0]._trial_id)
    running.set_constraint("valid", 1.0)
    plain.tell(0, state=optuna.trial.TrialState.PRUNED)
    assert plain.trials[0].constraints == {"valid": 1.0}
    assert plain.trials[0].params == {"x": 0.5}


def test_a_stuck_sampler_tries_neighbours_that_are_not_slower_than_what_lost_nothing():
    _, view = halfway(40)
    front, asked_so_far = search_front(view, 0), len(view.snapshot.trials)
    best = next(trial for trial in front if not (trial.seed_name or "").endswith("~"))  # whose neighbours can be drawn
    assert best.values is not None
    lossless = best.values.model_copy(update={"error": negligible_error(view, 0)})
    rows = [t.model_copy(update={"values": lossless}) if t.id == best.id else t for t in view.snapshot.trials]
    again = [
        best.model_copy(
            update={
                "id": f"again-{n}",
                "number": asked_so_far + n,
                "study_number": asked_so_far + n,
                "state": TrialState.DUPLICATE,
                "duplicate_of": best.number,
                "build_id": None,
                "seed_name": None,
                "values": None,
            }
        )
        for n in range(STUCK_AFTER)
    ]
    snapshot = view.snapshot
    stuck = View(type(snapshot)(view.job, (*rows, *again), snapshot.builds, snapshot.measurements))
    least, _ = speedups_of_use(stuck, 0)
    space = SearchSpace(Network(MANY), RecoverySpec())
    names = set()
    for seed in range(16):
        one = TargetStudy(space, target=0, seed=seed, seeds=0)
        one.sync(stuck)
        asked = one.ask(stuck)
        names.add((asked.seed_name or "").split("-")[0])
        if asked.seed_name is not None:
            assert one.models(stuck).latency["fp32"].speedup(space.row_of(asked.candidate)) >= INSIDE * least > 1.0
    assert "near" in names
