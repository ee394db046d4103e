"""A job's trials as Optuna studies in any Optuna storage: optuna-dashboard and ``optuna.visualization`` then work on them.

What is written is a copy: the tables stay the truth, and nothing of ours reads a study back. Writing again adds what is new.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from domain.errors import Invalid, Unavailable
from domain.job import Job
from domain.trial import Trial, TrialState

optuna.logging.set_verbosity(optuna.logging.WARNING)

JOURNAL = "journal:"
METRICS = ("error", "latency_ratio")
NUMBER = "pruneloop_trial"
_ENDS = {
    TrialState.REJECTED: OptunaState.PRUNED,
    TrialState.INFEASIBLE: OptunaState.PRUNED,
    TrialState.DUPLICATE: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.CANCELLED: OptunaState.FAIL,
}


@dataclass(frozen=True)
class Exported:
    """One study: its name, the target it is of, how many trials were added now and how many it holds."""

    study: str
    target: int
    added: int
    trials: int


def export_study(
    job: Job, trials: Sequence[Trial], storage: str, *, targets: Sequence[int] | None = None
) -> list[Exported]:
    """Write a study a target, named ``<job>-target-<n>``; running trials are left for the next time.

    Args:
        job: The job.
        trials: All its trials, in any order.
        storage: Any Optuna storage: ``sqlite:///trials.db``, ``postgresql://...``, or ``journal:FILE``, which needs no database.
        targets: Only these targets; None: all.

    Raises:
        Invalid: ``bad_storage`` where Optuna knows no such storage.
        Unavailable: ``storage_unreachable`` where it does not answer.
    """
    place = _open(storage)
    by_number = {trial.number: trial for trial in trials}
    made = []
    for target in range(len(job.spec.targets)) if targets is None else targets:
        name = f"{job.id}-target-{target}"
        study = optuna.create_study(
            storage=place, study_name=name, directions=["minimize"] * len(METRICS), load_if_exists=True
        )
        with warnings.catch_warnings():
            # Experimental since Optuna 3.2; held by a test against the pinned version.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(METRICS))
        for key, value in _about(job, target).items():
            study.set_user_attr(key, value)
        known = {trial.user_attrs.get(NUMBER) for trial in study.get_trials(deepcopy=False)}
        new = [
            trial
            for trial in sorted(trials, key=lambda one: one.study_number)
            if trial.target == target and trial.state.is_terminal and trial.number not in known
        ]
        for trial in new:
            study.add_trial(_frozen(trial, by_number))
        made.append(Exported(name, target, len(new), len(study.get_trials(deepcopy=False))))
    return made


def _open(storage: str) -> BaseStorage:
    if storage.startswith(JOURNAL):
        return JournalStorage(JournalFileBackend(storage.removeprefix(JOURNAL)))
    try:
        return optuna.storages.get_storage(storage)
    except (ValueError, ImportError) as error:
        raise Invalid(
            f"Optuna opens no storage {storage.split('@')[-1]} ({error}); sqlite:///trials.db and journal:trials.log always work.",
            code="bad_storage",
        ) from error
    except Exception as error:  # a driver's own errors have no common root
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "parse" in first.lower() or "plugin" in first.lower():
            raise Invalid(f"That is no storage URL ({first}); try sqlite:///trials.db.", code="bad_storage") from error
        raise Unavailable(f"The storage does not answer: {first}", code="storage_unreachable") from error


def _about(job: Job, target: int) -> dict[str, Any]:
    spec = job.spec.targets[target]
    return {
        "job": job.id,
        "name": job.name,
        "runtime": spec.runtime,
        "precision": list(spec.precision),
        "batch": spec.batch,
        "threads": spec.threads,
        "objectives": "error on the search split; latency / dense latency, measured and paired",
    }


def _frozen(trial: Trial, by_number: Mapping[int, Trial]) -> FrozenTrial:
    source = by_number.get(trial.duplicate_of, trial) if trial.duplicate_of is not None else trial
    values = source.values
    # A duplicate's outcome is that of the trial it repeats.
    is_point = values is not None and source.state is TrialState.SUCCEEDED
    frozen = optuna.trial.create_trial(
        state=OptunaState.COMPLETE if is_point else _ENDS.get(trial.state, OptunaState.FAIL),
        values=[values.error, values.latency_ratio] if is_point and values is not None else None,
        params={name: value for name, value in trial.params.items() if name in trial.distributions},
        distributions={
            name: json_to_distribution(json.dumps(distribution)) for name, distribution in trial.distributions.items()
        },
        user_attrs=_attributes(trial),
        constraints=dict(values.constraints) if values is not None and values.constraints else None,
    )
    frozen.datetime_start = _naive(trial.created_at)
    frozen.datetime_complete = _naive(trial.finished_at or trial.created_at)
    return frozen


def _attributes(trial: Trial) -> dict[str, Any]:
    candidate = trial.candidate
    found: dict[str, Any] = {
        NUMBER: trial.number,
        "state": trial.state.value,
        "seed": trial.seed_name,
        "reason": trial.reason,
        "duplicate_of": trial.duplicate_of,
        "precision": candidate.precision,
        "widths": candidate.widths,
        "dropped": list(candidate.dropped),
        "speedup": 1 / trial.values.latency_ratio if trial.values is not None else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _naive(moment: datetime) -> datetime:
    """Return the local time without a zone: Optuna's own."""
    return moment.astimezone().replace(tzinfo=None)
