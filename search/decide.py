"""What a job needs next, from its tables alone. Pure: the same snapshot always gives the same actions.

The order is prepare -> baseline -> search -> finals (``search.finals``). Trials are built while the baseline is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from pydantic import JsonValue

from domain.build import Build, BuildResult, CandidateRequest, Inherited
from domain.candidate import Candidate, UnprunableLayer
from domain.device import Device
from domain.job import EndedBy, JobState, Stage
from domain.measurement import Measured, MeasuredFile, MeasurementPlan, MeasurementRequest
from domain.outcome import Blame, Failed
from domain.ports import NewBuild, NewMeasurement, NewTrial
from domain.trial import Trial, TrialState
from domain.work import WorkState
from search import finals, rejecting
from search.accounting import elapsed_s, waiting_s
from search.actions import Action, Ask, End, Enter, FinishTrial, GiveBack, Report, StartBuild, StartMeasurement
from search.chain import is_chain_pending
from search.devices import why_no_device, why_stuck
from search.precision import baseline_scale, first_of, is_mixed, session_key
from search.probes import is_probing, probe_sessions
from search.reserve import affordable, search_ends_s
from search.stopping import is_searched_out
from search.told import values_of
from search.view import View, candidate_key, content_key, failure_of, measured_file, prepare_request
from search.widths import FINE, widths_of

MAX_IN_FLIGHT = 3  # a target: one measured, one waiting for the device, one being built
RETRY_S = 2.0
# Nothing but the system failing: more trials would only burn the budget.
MAX_SYSTEM_FAILURES = 5


def decide(
    view: View, *, now: datetime, devices: Sequence[Device], parameters: int, in_flight: int = MAX_IN_FLIGHT
) -> list[Action]:
    """Return the next writes; none: wait for a change.

    Args:
        view: The job as its tables tell it; RUNNING or STOPPING.
        now: The tables' clock.
        devices: Every device known.
        parameters: Parameters of the search space, 0 while there is none.
        in_flight: Trials a target may have under way.
    """
    if view.job.state is JobState.STOPPING:
        if finals.is_chosen(view):
            return finals.decide(view, now)
        wound_down = wind_down(view, why_stuck(view, devices, now))
        if wound_down is not None:
            return wound_down
    blocked = _without_device(view, now, devices)
    if blocked is not None:
        return blocked
    actions = _stop_waiting(view, now)
    if finals.is_chosen(view):
        return actions + (_more_finals(view, now) or finals.decide(view, now))
    prepared = _prepare(view)
    if prepared is not None:
        return actions + prepared
    return actions + (_baseline(view) or _search(view, now, parameters=parameters, in_flight=in_flight))


def wind_down(view: View, stuck: str | None) -> list[Action] | None:
    """Return how a stopping job ends, or None while running trials still have to finish.

    Trials that cannot finish, because no device comes for them (``stuck`` says why), are given up.
    """
    running = [trial for trial in view.snapshot.trials if not trial.state.is_terminal]
    if running and stuck is not None:
        return [
            FinishTrial(trial.id, TrialState.CANCELLED, reason=f"the job was stopped. {stuck}") for trial in running
        ]
    if running:
        return None
    return [End(JobState.STOPPED, EndedBy.USER, "stopped on request; the front is provisional: finals did not run")]


# --- devices --------------------------------------------------------------------------------------------------------
def _without_device(view: View, now: datetime, devices: Sequence[Device]) -> list[Action] | None:
    has_begun = bool(view.snapshot.builds or view.snapshot.measurements)
    if has_begun:
        reason = why_stuck(view, devices, now)
    else:
        missing = (why_no_device(target, index, devices) for index, target in enumerate(view.spec.targets))
        reason = next((text for text in missing if text is not None), None)
        if reason is not None and view.spec.when_no_device == "fail":
            return [End(JobState.FAILED, EndedBy.SYSTEM, reason)]
    if reason is None:
        return None
    actions: list[Action] = []
    if not isinstance(view.job.report.get("waiting_since"), str):
        actions.append(Report({"waiting_since": now.isoformat()}))
    if view.job.stage is not Stage.WAITING or view.job.reason != reason:
        actions.append(Enter(Stage.WAITING, reason))
    return [*actions, GiveBack(retry_after_s=RETRY_S)]


def _stop_waiting(view: View, now: datetime) -> list[Action]:
    if not isinstance(view.job.report.get("waiting_since"), str):
        return []
    return [Report({"waiting_since": None, "waiting_s": round(waiting_s(view.job, now), 3)})]


# --- prepare --------------------------------------------------------------------------------------------------------
def _prepare(view: View) -> list[Action] | None:
    actions: list[Action] = []
    is_waiting = False
    for index, target in enumerate(view.spec.targets):
        build = view.prepare_build(index)
        if build is None:
            request = prepare_request(view, target.batch)
            if not any(isinstance(a, StartBuild) and a.build.key == content_key(request) for a in actions):
                actions.append(StartBuild(NewBuild(content_key(request), request), may_adopt=True))
        elif not build.state.is_terminal:
            is_waiting = True
        elif not isinstance(build.outcome, BuildResult):
            return [_failure(failure_of(build)), End(JobState.FAILED, EndedBy.SYSTEM, _why(build))]
        elif len(_without_steps(build.outcome)) == len(build.outcome.groups) and not build.outcome.blocks:
            nothing = Failed(
                stage="groups", reason=_nothing_to_prune(build.outcome), blame=Blame.CANDIDATE, code="nothing_to_prune"
            )
            return [_failure(nothing), End(JobState.FAILED, EndedBy.SYSTEM, nothing.reason)]
    if actions or is_waiting:
        return _entering(view, Stage.PREPARING) + actions
    if "groups" not in view.job.report:
        return [Report(_dense_report(view.dense_of(0)))]
    return None


def _failure(failed: Failed | None) -> Report:
    """Return what a script needs to tell failures apart: the stable code, where it happened, and who is to blame."""
    if failed is None:
        return Report({"failure": {"code": "cancelled", "stage": "prepare", "blame": Blame.SYSTEM.value}})
    return Report({"failure": {"code": failed.code, "stage": failed.stage, "blame": failed.blame.value}})


def _nothing_to_prune(result: BuildResult) -> str:
    whole = (*result.unprunable, *_without_steps(result))
    because = "; ".join(f"{layer.name}: {layer.reason}" for layer in whole[:5])
    return "Nothing to prune: the model has no group of channels that can be removed" + (
        f" ({because})." if because else ". Check that its layers are convolutions or linear layers with fixed shapes."
    )


def _without_steps(result: BuildResult) -> tuple[UnprunableLayer, ...]:
    """Return the groups that stay whole because there is no narrower width that any device packs well, each with the reason."""
    return tuple(
        UnprunableLayer(
            name=group.name,
            reason=f"it has {group.channels} channels, and no narrower width that devices pack well (the least is {FINE})",
        )
        for group in result.groups
        if len(widths_of(group)) == 1
    )


def _dense_report(result: BuildResult) -> dict[str, JsonValue]:
    return {
        "groups": [group.model_dump(mode="json") for group in result.groups],
        "unprunable": [layer.model_dump(mode="json") for layer in (*result.unprunable, *_without_steps(result))],
        "splits": result.splits.model_dump(mode="json") if result.splits is not None else None,
        "versions": dict(result.versions),
        "notes": list(result.notes),
        "dense": {"accuracy_search": result.accuracy.search, "macs": result.macs, "params": result.params},
    }


# --- baseline -------------------------------------------------------------------------------------------------------
def _baseline(view: View) -> list[Action]:
    actions: list[Action] = []
    for index, precision, key in _baseline_keys(view):
        measurement = view.measurements.get(key)
        if measurement is None:
            first = measured_file(view.dense_of(index), view.format_of(index), first_of(view, index))
            actions.append(StartMeasurement(new_measurement(view, index, key, first, precision)))
        elif measurement.state.is_terminal and not isinstance(measurement.outcome, Measured):
            failed = failure_of(measurement)
            text = failed.reason if failed is not None else "it was cancelled"
            who = f"Target {index}: the dense model" + (f" in {precision}" if is_mixed(view, index) else "")
            return [End(JobState.FAILED, EndedBy.SYSTEM, f"{who} could not be measured: {text}")]
    actions += probe_sessions(view)
    return _entering(view, Stage.BASELINE) + actions if actions else []


def _baseline_keys(view: View) -> list[tuple[int, str, str]]:
    """Return (target, precision, key) of every baseline: the dense model of a precision against that of the first."""
    return [
        (index, precision, session_key("baseline", view, index, precision))
        for index, target in enumerate(view.spec.targets)
        for precision in target.precision
    ]


def has_baselines(view: View) -> bool:
    done = (view.measurements.get(key) for _, _, key in _baseline_keys(view))
    return all(measurement is not None and measurement.state is WorkState.DONE for measurement in done)


def new_measurement(view: View, target: int, key: str, file: MeasuredFile, precision: str) -> NewMeasurement:
    """Return a measurement of a file against the dense model of the target in a precision."""
    spec = view.spec.targets[target]
    return NewMeasurement(
        key=key,
        target=target,
        selector=spec.device,
        request=MeasurementRequest(
            runtime=spec.runtime,
            precision=precision,
            batch=spec.batch,
            threads=spec.threads,
            baseline=measured_file(view.dense_of(target), view.format_of(target), precision),
            candidates=(file,),
            plan=MeasurementPlan(seed=view.spec.seed),
        ),
    )


# --- trials ---------------------------------------------------------------------------------------------------------
def new_trial(
    view: View,
    target: int,
    candidate: Candidate,
    *,
    study_number: int,
    params: dict[str, JsonValue],
    distributions: dict[str, JsonValue],
    seed_name: str | None,
    start: Inherited | None = None,
) -> NewTrial:
    """Return the trial an ask becomes.

    An architecture the target has seen is a duplicate, and so is the dense model; neither is built. One that another
    target has seen shares that build, with its importance and recovery: accuracy does not depend on the device.
    """
    build: NewBuild | None = None
    duplicate_of: int | None = None
    identity = candidate.identity
    same = [
        trial for trial in view.snapshot.trials if trial.build_id is not None and trial.candidate.identity == identity
    ]
    here = next((trial for trial in same if trial.target == target), None)
    if here is not None:
        duplicate_of, candidate = here.number, here.candidate
    elif not candidate.is_dense(list(view.dense_of(0).groups)):
        if same:
            candidate, start = same[0].candidate, _start_of(view, same[0])
        request = candidate_request(view, target, candidate, start)
        build = NewBuild(candidate_key(request), request)
    return NewTrial(
        target=target,
        study_number=study_number,
        params=params,
        distributions=distributions,
        candidate=candidate,
        seed_name=seed_name,
        build=build,
        duplicate_of=duplicate_of,
    )


def _start_of(view: View, trial: Trial) -> Inherited | None:
    build = view.builds_by_id.get(trial.build_id or "")
    return build.request.start if build is not None and isinstance(build.request, CandidateRequest) else None


def candidate_request(view: View, target: int, candidate: Candidate, start: Inherited | None) -> CandidateRequest:
    spec = view.spec
    return CandidateRequest(
        model=spec.model,
        data=spec.data,
        metric=spec.objective.metric,
        batch=spec.targets[target].batch,
        seed=spec.seed,
        weights=view.dense_of(target).weights,
        candidate=candidate,
        formats=(view.format_of(target),),
        start=start,
    )


def _search(view: View, now: datetime, *, parameters: int, in_flight: int) -> list[Action]:
    moves = [move for trial in view.snapshot.trials if (move := _advance(view, trial)) is not None]
    if moves:
        return moves
    entering = _entering(view, Stage.SEARCHING) if has_baselines(view) else []
    if view.job.state is JobState.STOPPING:
        return entering
    broken = _system_failure(view)
    if broken is not None:
        return [End(JobState.FAILED, EndedBy.SYSTEM, broken)]
    open_targets, ended_by = _open_targets(view, now, parameters=parameters)
    if open_targets:
        able = [
            target
            for target in open_targets
            if _in_flight(view, target) < in_flight
            and not is_chain_pending(view, target)
            and not is_probing(view, target)
        ]
        if able:
            return [*entering, Ask(min(able, key=lambda target: (_counted(view, target), target)))]
        return entering
    if any(not trial.state.is_terminal for trial in view.snapshot.trials) or not has_baselines(view):
        return entering
    return finals.choose(affordable(view, now), ended_by=ended_by)


def _more_finals(view: View, now: datetime) -> list[Action]:
    """Return the choice of further finals where those before were built in less time than was kept for them."""
    if view.job.state is JobState.STOPPING or not finals.are_built(view):
        return []
    more = affordable(view, now)
    if all(len(numbers) == len(finals.finalists(view, target)) for target, numbers in more.items()):
        return []
    return finals.choose(more, ended_by=finals.search_ended_by(view))


def _open_targets(view: View, now: datetime, *, parameters: int) -> tuple[list[int], EndedBy]:
    """Return the targets that may ask for more, and what ended the others."""
    targets = list(range(len(view.spec.targets)))
    if sum(_counted(view, target) for target in targets) >= view.spec.budget.trials:
        return [], EndedBy.BUDGET
    if elapsed_s(view.job, now) >= search_ends_s(view):
        return [], EndedBy.BUDGET
    return [target for target in targets if not is_searched_out(view, target, parameters=parameters)], EndedBy.PLATEAU


def _counted(view: View, target: int) -> int:
    """Return the trials that count against the budget: those that were built."""
    return sum(trial.build_id is not None for trial in view.trials_of(target))


def _in_flight(view: View, target: int) -> int:
    return sum(not trial.state.is_terminal for trial in view.trials_of(target))


def _advance(view: View, trial: Trial) -> Action | None:
    if trial.state is TrialState.MEASURING:
        return _after_measuring(view, trial)
    if trial.state is not TrialState.BUILDING:
        return None
    if trial.build_id is None:
        return _as_duplicate(view, trial)
    build = view.builds_by_id[trial.build_id]
    if not build.state.is_terminal:
        return None
    if not isinstance(build.outcome, BuildResult):
        return _as_failed(trial, failure_of(build))
    if not math.isfinite(build.outcome.accuracy.search):
        return FinishTrial(trial.id, TrialState.INFEASIBLE, reason="recover: the accuracy is not a number")
    reason = rejecting.why_rejected(view, trial, build.outcome)
    if reason is not None:
        return FinishTrial(trial.id, TrialState.REJECTED, reason=reason)
    key = f"trial:{trial.target}:{trial.candidate.architecture}"
    file = measured_file(build.outcome, view.format_of(trial.target))
    return StartMeasurement(
        new_measurement(view, trial.target, key, file, trial.candidate.precision), trial_id=trial.id
    )


def _after_measuring(view: View, trial: Trial) -> Action | None:
    measurement = view.measurements_by_id[trial.measurement_id or ""]
    if not measurement.state.is_terminal:
        return None
    built = view.built(trial)
    if built is None or not isinstance(measurement.outcome, Measured):
        return _as_failed(trial, failure_of(measurement))
    scale = baseline_scale(view, trial.target, trial.candidate.precision)
    if scale is None:
        return None  # another device was faster than the one that measures the baseline
    timing = measurement.outcome.candidates[0]
    dense, target = view.dense_accuracy(trial.target), view.spec.targets[trial.target]
    values = values_of(timing, built.accuracy.search, dense, view.spec, target, scale=scale.ratio)
    return FinishTrial(trial.id, TrialState.SUCCEEDED, values=values)


def _as_duplicate(view: View, trial: Trial) -> Action | None:
    if trial.duplicate_of is None:
        return FinishTrial(trial.id, TrialState.DUPLICATE, reason="decodes to the dense model")
    original = view.original(trial)
    if not original.state.is_terminal:
        return None
    return FinishTrial(
        trial.id,
        TrialState.DUPLICATE,
        values=original.values,
        reason=f"same widths as trial {original.number} ({original.state})",
    )


def _as_failed(trial: Trial, failed: Failed | None) -> FinishTrial:
    if failed is None:
        return FinishTrial(trial.id, TrialState.CANCELLED, reason="its work was cancelled")
    state = TrialState.INFEASIBLE if failed.blame is Blame.CANDIDATE else TrialState.FAILED
    return FinishTrial(trial.id, state, reason=f"{failed.stage}: {failed.reason}")


def _system_failure(view: View) -> str | None:
    finished = [t for t in view.snapshot.trials if t.state.is_terminal and t.build_id is not None]
    last = sorted(finished, key=lambda t: (t.finished_at or t.created_at, t.number))[-MAX_SYSTEM_FAILURES:]
    if len(last) == MAX_SYSTEM_FAILURES and all(trial.state is TrialState.FAILED for trial in last):
        return f"The last {MAX_SYSTEM_FAILURES} trials failed and no candidate is to blame; the last said: {last[-1].reason}"
    return None


def _entering(view: View, stage: Stage) -> list[Action]:
    return [] if view.job.stage is stage and view.job.reason is None else [Enter(stage)]


def _why(build: Build) -> str:
    failed = failure_of(build)
    return f"{failed.stage}: {failed.reason}" if failed is not None else "the dense model's build was cancelled"
