"""One target's Optuna study: in memory, rebuilt from our trials, never stored.

The tables are the truth. A study only ever repeats them: after a crash a new one, filled from the rows, asks what the
lost one would have asked, because the sampler is seeded anew for every ask from the number of the ask.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import TrialState as OptunaState
from pydantic import JsonValue

from domain.candidate import Candidate
from domain.trial import Trial
from search.sampler import Preset, ask_seed, make_sampler
from search.seeds import Seed
from search.space import SearchSpace
from search.told import Told, constraint_names, told_of
from search.view import View, trailing_duplicates

optuna.logging.set_verbosity(optuna.logging.WARNING)

# After this many architectures in a row that were seen before, the sampler is stuck on a peak: draw at random instead.
DUPLICATES_BEFORE_RANDOM = 3

_STATES = {"complete": OptunaState.COMPLETE, "pruned": OptunaState.PRUNED, "fail": OptunaState.FAIL}


@dataclass(frozen=True)
class Asked:
    """An ask, decoded: what a trial row needs."""

    study_number: int
    params: dict[str, JsonValue]
    distributions: dict[str, JsonValue]
    candidate: Candidate
    seed_name: str | None


class TargetStudy:
    """The study of one target of one job.

    Args:
        space: What is searched.
        target: Index of the target within the job.
        seed: The job's seed.
        seeds: Starting candidates, asked first and in order.
        preset: Sampler.
    """

    def __init__(
        self, space: SearchSpace, *, target: int, seed: int, seeds: Sequence[Seed] = (), preset: Preset = "tpe"
    ) -> None:
        self._space = space
        self._target = target
        self._seed = seed
        self._seeds = tuple(seeds)
        self._preset = preset
        self._study = optuna.create_study(
            directions=["minimize", "minimize"],
            sampler=make_sampler(preset, seed=ask_seed(seed, target, 0)),
            pruner=optuna.pruners.NopPruner(),
        )
        self._count = 0
        self._told: set[int] = set()

    def sync(self, view: View) -> None:
        """Bring the study up to the tables: add the trials it has not seen, tell those that finished since."""
        trials = view.trials_of(self._target)
        for trial in trials:
            if trial.study_number in self._told:
                continue
            told = self._adjust(told_of(trial, view), trial, view)
            if trial.study_number >= self._count:
                self._add(trial, told)
            elif told is not None:
                self._tell(trial.study_number, told)
            if told is not None:
                self._told.add(trial.study_number)

    def ask(self, view: View) -> Asked:
        """Return the next proposal; ``sync`` first. Seeds come before the sampler's own."""
        number = self._count
        stuck = trailing_duplicates(view.trials_of(self._target)) >= DUPLICATES_BEFORE_RANDOM
        preset: Preset = "random" if stuck else self._preset
        self._study.sampler = make_sampler(preset, seed=ask_seed(self._seed, self._target, number))
        seed = self._seeds[number] if number < len(self._seeds) else None
        if seed is not None:
            self._study.enqueue_trial(params=dict(seed.params))
        trial = self._study.ask(fixed_distributions=dict(self._space.distributions))
        self._count += 1
        params = {name: float(value) for name, value in trial.params.items()}
        return Asked(
            study_number=number,
            params=dict(params),
            distributions={
                name: json.loads(distribution_to_json(distribution))
                for name, distribution in trial.distributions.items()
            },
            candidate=seed.candidate if seed is not None else self._space.decode(params),
            seed_name=seed.name if seed is not None else None,
        )

    def _add(self, trial: Trial, told: Told | None) -> None:
        if trial.study_number != self._count:
            raise LookupError(f"trial {trial.number}: study number {trial.study_number}, expected {self._count}")
        self._study.add_trial(
            optuna.trial.create_trial(
                state=_STATES[told.kind] if told is not None else OptunaState.RUNNING,
                params=dict(trial.params),
                distributions={
                    name: json_to_distribution(json.dumps(distribution))
                    for name, distribution in trial.distributions.items()
                },
                values=list(told.values) if told is not None and told.values is not None else None,
                constraints=told.constraints if told is not None else None,
            )
        )
        self._count += 1

    def _tell(self, number: int, told: Told) -> None:
        # A trial that was added as running (or asked) takes constraints only through Optuna's own Trial, and that wants
        # a private id: the one place we touch it, held by a test against the pinned version.
        frozen = self._study.get_trials(deepcopy=False)[number]
        running = optuna.trial.Trial(self._study, frozen._trial_id)
        for name, value in told.constraints.items():
            running.set_constraint(name, value)
        self._study.tell(number, told.values, state=_STATES[told.kind])

    def _adjust(self, told: Told | None, trial: Trial, view: View) -> Told | None:
        """Under ``gp``, which does not see pruned trials, a candidate's failure is a point as bad as any yet."""
        if self._preset != "gp" or told is None or told.kind != "pruned":
            return told
        known = [
            other.values
            for other in view.trials_of(self._target)
            if other.values is not None and other.study_number < trial.study_number
        ]
        worst = (max((v.error for v in known), default=1.0), max((v.latency_ratio for v in known), default=1.0))
        # Every key on every finished trial: the sampler pairs constraints by position and refuses uneven ones.
        names = constraint_names(view.spec.targets[self._target])
        return Told("complete", worst, {name: told.constraints.get(name, 1.0) for name in names})
