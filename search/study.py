"""One target's Optuna study: in memory, rebuilt from our trials, never stored.

The tables are the truth. A study only ever repeats them: after a crash a new one, filled from the rows, asks what the
lost one would have asked, because the sampler is seeded anew for every ask from the number of the ask.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import TrialState as OptunaState
from pydantic import JsonValue

from domain.candidate import Candidate
from domain.trial import Trial
from search.chain import in_other_precisions, next_link
from search.finals import search_front
from search.gaps import GAP, between, speedups_of_use
from search.models import Models, fit_models
from search.options import Parts
from search.probes import count_probed
from search.sampler import Preset, ask_seed, make_sampler
from search.seeds import INSIDE, Seed, aimed, shared, with_zeros
from search.space import SearchSpace
from search.told import Told, constraint_names, told_of
from search.view import View, trailing_duplicates

optuna.logging.set_verbosity(optuna.logging.WARNING)

# After this many architectures in a row that were seen before, the sampler is stuck on a peak: try next to a front point
# instead, and where all neighbours are known, draw at random.
STUCK_AFTER = 2
NEIGHBOUR_TRIES = 40

ALL = Parts()

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
        seeds: The most trials that may be starting candidates; 0: the sampler's own from the first on.
        preset: Sampler.
        parts: Which parts of the search are on.
    """

    def __init__(
        self, space: SearchSpace, *, target: int, seed: int, seeds: int = 0, preset: Preset = "tpe", parts: Parts = ALL
    ) -> None:
        self._space = space
        self._target = target
        self._seed = seed
        self._seeds = seeds
        self._models: Models | None = None
        self._known: tuple[int, int] | None = None
        self._preset = preset
        self._parts = parts
        self._study = optuna.create_study(
            directions=["minimize", "minimize"],
            sampler=make_sampler(preset, seed=ask_seed(seed, target, 0), distributions=space.distributions),
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
        models = self.models(view)
        seed = self._seed_for(view, models)
        preset = self._preset
        if seed is None and trailing_duplicates(view.trials_of(self._target)) >= STUCK_AFTER:
            seed = self._neighbour(number, view, models)
            preset = "random"
        distributions = self._space.distributions
        if seed is not None:
            self._study.enqueue_trial(params=dict(seed.params))
        elif self._parts.ranges:
            low, high = speedups_of_use(view, self._target)
            distributions = self._space.within(low, min(high, self._space.reach(models)))
        self._study.sampler = make_sampler(
            preset, seed=ask_seed(self._seed, self._target, number), distributions=distributions
        )
        trial = self._study.ask(fixed_distributions=dict(distributions))
        self._count += 1
        params = {name: float(value) for name, value in trial.params.items()}
        return Asked(
            study_number=number,
            params=dict(params),
            distributions={
                name: json.loads(distribution_to_json(distribution))
                for name, distribution in trial.distributions.items()
            },
            candidate=seed.candidate if seed is not None else self._space.decode(params, models),
            seed_name=seed.name if seed is not None else None,
        )

    def models(self, view: View) -> Models:
        """Return the target's predictors, fitted anew whenever something was learnt."""
        shaped = len(view.shaped(self._target)) + count_probed(view, self._target)
        known = shaped, sum(view.built(trial) is not None for trial in view.snapshot.trials)
        if self._models is None or known != self._known:
            self._models = fit_models(view, self._target, self._space.network, parts=self._parts)
            self._known = known
        return self._models

    def _seed_for(self, view: View, models: Models) -> Seed | None:
        trials = view.trials_of(self._target)
        if not self._seeds:
            return None
        is_beginning = sum(trial.seed_name is not None for trial in trials) < self._seeds
        links = max(1, self._seeds // len(self._space.precisions))
        link = next_link(self._space, view, self._target, models, limit=links) if is_beginning else None
        if link is not None and not trials:
            return link  # first of all something narrower, whatever zeros may bring
        seed = with_zeros(self._space, view, self._target, models) or link
        if seed is None and is_beginning:
            seed = aimed(self._space, view, self._target, models) or in_other_precisions(
                self._space, view, self._target, models
            )
        return seed or shared(self._space, view, self._target, models) or self._between(view, models)

    def _between(self, view: View, models: Models) -> Seed | None:
        """Return a candidate for a gap in the front; every other ask is the sampler's."""
        trials = view.trials_of(self._target)
        of_gaps = sum((trial.seed_name or "").startswith(GAP) for trial in trials)
        if of_gaps > sum(trial.seed_name is None for trial in trials):
            return None
        return between(self._space, view, self._target, models)

    def _neighbour(self, number: int, view: View, models: Models) -> Seed | None:
        """Return an architecture not seen before next to a random point of the measured front, wider afield each try.

        None that is predicted to be slower than a network that lost nothing.
        """
        dice = random.Random(ask_seed(self._seed, self._target, number))
        # Parameters of a projected seed stand for another candidate than the one measured.
        front = [trial for trial in search_front(view, self._target) if not trial.candidate.zeros]
        parents = [trial for trial in front if not (trial.seed_name or "").endswith("~")]
        seen = view.identities_of(self._target)
        least, _ = speedups_of_use(view, self._target)
        for attempt in range(NEIGHBOUR_TRIES if parents else 0):
            parent = dice.choice(parents)
            known = {name: float(str(value)) for name, value in parent.params.items()}
            params = self._space.perturb(known, dice=dice, scale=0.05 + 0.3 * attempt / NEIGHBOUR_TRIES)
            candidate = self._space.decode(params, models)
            if models.latency[candidate.precision].speedup(self._space.row_of(candidate)) < INSIDE * least:
                continue
            if candidate.identity not in seen and not candidate.is_dense(list(self._space.groups)):
                return Seed(f"near-{parent.number}", params, candidate)
        return None

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
