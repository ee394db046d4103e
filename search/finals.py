"""The finals: the front's best few, recovered long, run on the test split and re-measured together. Pure.

What was chosen is written to the job's report (``finals``), so that any search worker goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from pydantic import JsonValue

from domain.build import Build, BuildResult, FinalRequest
from domain.candidate import Candidate
from domain.job import EndedBy, JobState, Stage
from domain.measurement import Measured, Measurement, MeasurementPlan, MeasurementRequest
from domain.outcome import Blame
from domain.pareto import hypervolume, nondominated
from domain.ports import NewBuild, NewMeasurement
from domain.trial import Trial
from search.accounting import FINAL_PLAN_S, elapsed_s, time_report
from search.actions import Action, End, Enter, Report, StartBuild, StartMeasurement
from search.precision import dense_points, session_key, yardstick
from search.recipe import rate_of, stretch_of
from search.told import allowed_error, negligible_error
from search.view import View, content_key, failure_of, measured_file
from search.zeros import may_stand

LEAST_PLAN_S = 2.0  # of a final's timed region, however little time is left: a trial's
AGAIN = ":again"  # ends the key of a session that repeats a suspect one
MOST_AGAIN = 2


def search_front(view: View, target: int) -> list[Trial]:
    """Return the non-dominated measured trials of a target, fastest first, without those the dense model beats."""
    key = "search_front", target
    if key not in view.memory:
        view.memory[key] = _front_without(view, target, ())
    return list(view.memory[key])


def _front_without(view: View, target: int, numbers: Collection[int]) -> list[Trial]:
    """Return what the search's front would be without some trials."""
    measured = [trial for trial in view.succeeded(target) if trial.number not in numbers and may_stand(view, trial)]
    front = nondominated(measured, latency=_latency, error=_error)
    dense = dense_points(view, target)
    return [t for t in front if all(_latency(t) < ratio or _error(t) < error for ratio, error in dense)]


def plain_front(view: View, target: int) -> list[Trial]:
    """Return the non-dominated trials among those without zeros, fastest first: zeros may make the best of one they beat."""
    return nondominated(view.shaped(target), latency=_latency, error=_error)


def pick(view: View, target: int, *, keep: int) -> list[Trial]:
    """Return at most ``keep`` front trials, the most wanted first.

    First the user's objective: the fastest within ``max_drop`` on the search split; the fastest of use beyond it, for long
    recovery often brings that much back; and the fastest that lost at most half, in case the test split is less kind. Then
    always what adds most to the area that the chosen dominate, in log latency times accuracy; the others come last.
    """
    front = search_front(view, target)
    dense_error = 1.0 - view.dense_accuracy(target)
    max_drop = view.spec.objective.max_drop
    chosen: list[Trial] = []
    numbers: set[int] = set()  # to compare whole trials is slow

    def take(trial: Trial | None) -> None:
        if trial is not None and trial.number not in numbers and len(chosen) < keep:
            chosen.append(trial)
            numbers.add(trial.number)

    useful = useful_of(view, target, front)
    for most in (max_drop, math.inf, max_drop / 2):
        take(next((trial for trial in useful if _error(trial) <= dense_error + most + 1e-9), None))
    if not chosen and front:
        take(min(front, key=_error))
    reference = (0.0, allowed_error(view, target))
    while len(chosen) < min(keep, len(front)):
        rest = [t for t in useful if t.number not in numbers] or [t for t in front if t.number not in numbers]
        points = [_log_point(trial) for trial in chosen]
        take(max(rest, key=lambda t: (hypervolume([*points, _log_point(t)], reference=reference), -_error(t))))
    return chosen


def runners_up(view: View, target: int, numbers: Collection[int]) -> list[Trial]:
    """Return what would be the useful front without some trials, fastest first: a few hundred samples do not tell it from them."""
    return useful_of(view, target, _front_without(view, target, numbers))


def useful_of(view: View, target: int, front: Sequence[Trial]) -> list[Trial]:
    """Return the part of a front that is worth a long recovery: no more lost than any user has use for, and nothing slower than
    the fastest network that lost nothing, which could only be more accurate by chance."""
    negligible = negligible_error(view, target)
    lossless = next((_latency(trial) for trial in front if _error(trial) <= negligible), math.inf)
    limit = allowed_error(view, target) + 1e-9
    return [trial for trial in front if _error(trial) <= limit and _latency(trial) <= lossless]


def choose(numbers: Mapping[int, Sequence[int]], *, ended_by: EndedBy) -> list[Action]:
    """Return the writes that end the search and name the finals of every target."""
    chosen: dict[str, JsonValue] = {str(target): list(own) for target, own in numbers.items()}
    return [Report({"finals": chosen, "search_ended_by": str(ended_by)}), Enter(Stage.FINALS)]


def is_chosen(view: View) -> bool:
    return isinstance(view.job.report.get("finals"), dict)


def search_ended_by(view: View) -> EndedBy:
    """Return what ended the search, as ``choose`` wrote it down."""
    return EndedBy(str(view.job.report.get("search_ended_by", EndedBy.BUDGET)))


def finalists(view: View, target: int) -> list[Trial]:
    """Return the trials chosen for a target, the most wanted first."""
    chosen = view.job.report.get("finals")
    numbers = chosen.get(str(target), []) if isinstance(chosen, dict) else []
    known = view.trials_by_number
    return [known[number] for number in numbers if isinstance(number, int)] if isinstance(numbers, list) else []


def decide(view: View, now: datetime) -> list[Action]:
    """Return the next writes of the finals: builds, then one measuring session a target, then the end."""
    if view.job.state is JobState.STOPPING:
        text = "stopped on request" if all_final(view) else "stopped on request; the front is provisional"
        return [Report(time_report(view, now)), End(JobState.STOPPED, EndedBy.USER, text)]
    builds = _missing_builds(view)
    if builds:
        return [*_entering(view, Stage.FINALS), *builds]
    if any(not build.state.is_terminal for build in _wanted_builds(view)):
        return _entering(view, Stage.FINALS)
    targets = range(len(view.spec.targets))
    max_s = _plan_s(view, now)
    sessions = [session for target in targets for session in _missing_sessions(view, target, max_s=max_s)]
    sessions += [session for target in targets for session in _doubted_sessions(view, target)]
    if sessions:
        return [*_entering(view, Stage.REMEASURING), *sessions]
    if any(not measurement.state.is_terminal for measurement in _sessions(view)):
        return _entering(view, Stage.REMEASURING)
    return _end(view, now)


def are_built(view: View) -> bool:
    """Return whether all finals chosen were built, and none is measured yet: the moment to see whether there is time for more."""
    if not is_chosen(view) or _missing_builds(view) or _sessions(view):
        return False
    return all(build.state.is_terminal for build in _wanted_builds(view))


def final_request(view: View, target: int, trial: Trial | None) -> FinalRequest:
    """Return the final build of a trial, or of the dense model for None."""
    spec = view.spec
    built = view.built(trial) if trial is not None else None
    return FinalRequest(
        model=spec.model,
        data=spec.data,
        metric=spec.objective.metric,
        batch=spec.targets[target].batch,
        seed=spec.seed,
        weights=view.dense_of(target).weights,
        start=built.weights if built is not None else None,
        candidate=_for_long(view, trial) if trial is not None else None,
        epochs=final_epochs(view, trial) if trial is not None else 0.0,
        precisions=view.precisions_of(spec.targets[target].batch) if trial is None else (trial.candidate.precision,),
        formats=_formats(view, target, trial),
    )


def final_epochs(view: View, trial: Trial) -> float:
    """Return the epochs of a trial's long recovery: the job's, or as much longer as suits a narrow network.

    A MobileNet of a twentieth of the work lost 0.8 to 1.0 points after 9 epochs from scratch, 0.2 to 0.3 after 14: three after a
    search's three were too few.
    """
    return round(view.spec.final.epochs * stretch_of(_share_of_work(view, trial)), 2)


def _for_long(view: View, trial: Trial) -> Candidate:
    """Return a trial's candidate with the rate of its long recovery, never below the usual one.

    A low rate keeps what a network inherited, which looks well after a short recovery; a long one at 0.4 of the rate left ten
    networks of a ViT 0.2 to 9 points behind.
    """
    recovery = trial.candidate.recovery
    usual = rate_of(_share_of_work(view, trial))
    higher = recovery.model_copy(update={"learning_rate": max(recovery.learning_rate, usual)})
    return trial.candidate.model_copy(update={"recovery": higher})


def _share_of_work(view: View, trial: Trial) -> float:
    built, dense = view.built(trial), view.dense_of(trial.target)
    return built.macs / dense.macs if built is not None and dense.macs else 1.0


def _formats(view: View, target: int, trial: Trial | None) -> tuple[str, ...]:
    """Return the formats of a final: what its targets read, and what the user asked to take away."""
    read = view.formats_of(view.spec.targets[target].batch) if trial is None else (view.format_of(target),)
    return tuple(dict.fromkeys((*read, *view.spec.exports)))


def final_build(view: View, target: int, trial: Trial | None) -> Build | None:
    return view.builds.get(content_key(final_request(view, target, trial)))


def _wanted(view: View) -> list[tuple[int, Trial | None]]:
    targets = range(len(view.spec.targets))
    return [(target, trial) for target in targets for trial in (None, *finalists(view, target))]


def _missing_builds(view: View) -> list[Action]:
    actions: dict[str, Action] = {}
    for target, trial in _wanted(view):
        request = final_request(view, target, trial)
        key = content_key(request)
        if key not in view.builds:
            actions[key] = StartBuild(NewBuild(key, request), may_adopt=trial is None)
    return list(actions.values())


def _wanted_builds(view: View) -> list[Build]:
    found = (final_build(view, target, trial) for target, trial in _wanted(view))
    return [build for build in found if build is not None]


def _recovered(view: View, target: int) -> list[tuple[Trial, BuildResult]]:
    """Return the finalists of a target that were built, in order."""
    pairs = []
    for trial in finalists(view, target):
        build = final_build(view, target, trial)
        if build is not None and isinstance(build.outcome, BuildResult):
            pairs.append((trial, build.outcome))
    return pairs


def _plan_s(view: View, now: datetime) -> float:
    """Return the longest timed region of a file: what is left of the wall budget is for all of them, and for starting sessions."""
    files = sum(len(_recovered(view, target)) + 1 for target in range(len(view.spec.targets)))
    left_s = view.spec.budget.wall_s - elapsed_s(view.job, now)
    return min(FINAL_PLAN_S, max(LEAST_PLAN_S, left_s / files))


def _missing_sessions(view: View, target: int, *, max_s: float = FINAL_PLAN_S) -> list[StartMeasurement]:
    """Return the sessions of a target still to be started: one a precision that has finalists."""
    actions: list[StartMeasurement] = []
    recovered = _recovered(view, target)
    for precision in view.spec.targets[target].precision:
        mine = [(trial, result) for trial, result in recovered if trial.candidate.precision == precision]
        key = session_key("final", view, target, precision)
        together = view.measurements.get(key)
        if together is None and mine:
            actions.append(_session(view, target, key, precision, [result for _, result in mine], max_s))
        elif together is not None and _is_candidates_fault(together) and len(mine) > 1:
            # One bad file spoils the session for all, and it does not say which: each on its own, then.
            for trial, result in mine:
                alone = f"{key}:{trial.number}"
                if alone not in view.measurements:
                    actions.append(_session(view, target, alone, precision, [result], max_s))
    return actions


def _doubted_sessions(view: View, target: int) -> list[StartMeasurement]:
    """Return the sessions to be measured again, by whoever is well: their device failed its health check afterwards."""
    spec = view.spec.targets[target]
    return [
        StartMeasurement(NewMeasurement(f"{m.key}{AGAIN}", target=target, selector=spec.device, request=m.request))
        for m, _ in accepted_sessions(view, target)
        if m.is_suspect and m.key.count(AGAIN) < MOST_AGAIN and f"{m.key}{AGAIN}" not in view.measurements
    ]


def _session(
    view: View, target: int, key: str, precision: str, results: list[BuildResult], max_s: float
) -> StartMeasurement:
    spec = view.spec.targets[target]
    dense = view.dense_final(target) or view.dense_of(target)
    files = [
        *yardstick(view, target, precision),
        *(measured_file(result, view.format_of(target)) for result in results),
    ]
    plan = MeasurementPlan(min_pairs=40, max_s=max_s, seed=view.spec.seed)  # a file
    request = MeasurementRequest(
        runtime=spec.runtime,
        precision=precision,
        batch=spec.batch,
        threads=spec.threads,
        baseline=measured_file(dense, view.format_of(target), precision),
        candidates=tuple(files),
        plan=plan,
    )
    return StartMeasurement(NewMeasurement(key=key, target=target, selector=spec.device, request=request))


def _sessions(view: View, target: int | None = None) -> list[Measurement]:
    prefixes = [f"final:{t}" for t in range(len(view.spec.targets)) if target is None or t == target]
    keys = [key for key in view.measurements if any(key == p or key.startswith(f"{p}:") for p in prefixes)]
    return [view.measurements[key] for key in keys]


def accepted_sessions(view: View, target: int) -> list[tuple[Measurement, Measured]]:
    """Return the final sessions of a target that gave numbers, without those that were doubted and measured again."""
    found = [(m, m.outcome) for m in _sessions(view, target) if isinstance(m.outcome, Measured)]
    keys = {m.key for m, _ in found}
    return [(m, outcome) for m, outcome in found if f"{m.key}{AGAIN}" not in keys]


def is_final(view: View, target: int) -> bool:
    """Return whether a target's finals are over: measured, or nothing was left to measure."""
    if not is_chosen(view) or view.dense_final(target) is None:
        return False
    if _missing_builds(view) or any(not build.state.is_terminal for build in _wanted_builds(view)):
        return False
    if not finalists(view, target):
        return True
    if _missing_sessions(view, target):
        return False
    sessions = _sessions(view, target)
    return bool(accepted_sessions(view, target)) and all(session.state.is_terminal for session in sessions)


def all_final(view: View) -> bool:
    return all(is_final(view, target) for target in range(len(view.spec.targets)))


def _end(view: View, now: datetime) -> list[Action]:
    problems = _problems(view)
    report: dict[str, JsonValue] = {**time_report(view, now), "problems": list(problems)}
    targets = range(len(view.spec.targets))
    if not any(is_final(view, target) for target in targets):
        text = "No final could be built and measured: " + ("; ".join(problems[:3]) or "see the job's builds")
        return [Report(report), End(JobState.FAILED, EndedBy.SYSTEM, text)]
    reason = None
    if not any(finalists(view, target) for target in targets):
        reason = "No candidate beat the dense model on any target; the trials say why each did not."
    return [Report(report), Enter(Stage.DONE), End(JobState.SUCCEEDED, search_ended_by(view), reason)]


def _problems(view: View) -> list[str]:
    problems = []
    for target, trial in _wanted(view):
        build = final_build(view, target, trial)
        failed = failure_of(build) if build is not None else None
        if failed is not None:
            who = "the dense model" if trial is None else f"trial {trial.number}"
            problems.append(f"target {target}: final of {who}: {failed.stage}: {failed.reason}")
    for session in _sessions(view):
        failed = failure_of(session)
        if failed is not None:
            problems.append(f"{session.key}: {failed.stage}: {failed.reason}")
    return problems


def _is_candidates_fault(measurement: Measurement) -> bool:
    failed = failure_of(measurement)
    return failed is not None and failed.blame is Blame.CANDIDATE


def _entering(view: View, stage: Stage) -> list[Action]:
    return [] if view.job.stage is stage and view.job.reason is None else [Enter(stage)]


def _latency(trial: Trial) -> float:
    return trial.values.latency_ratio if trial.values is not None else math.inf


def _error(trial: Trial) -> float:
    return trial.values.error if trial.values is not None else math.inf


def _log_point(trial: Trial) -> tuple[float, float]:
    return math.log(max(_latency(trial), 1e-9)), _error(trial)
