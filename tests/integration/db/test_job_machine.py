"""A model of a job's life, played at random against the tables: every verb in every state, while its search changes hands and dies.

What must hold at every step: the state is what the domain's rules give, an end is for ever, a lost lease writes nothing, what was
asked is what there is, events count on without a gap, and a job that is over leaves no work that anybody could take.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Engine, text

from db.models import metadata
from db.store import SqlJobStore
from domain.errors import StaleAttempt, WrongState
from domain.job import EndedBy, JobState, JobVerb, state_after
from domain.ports import SearchLease
from domain.trial import TrialState
from domain.work import WorkState
from tests.integration.db.machines import play
from tests.integration.db.samples import LEASE_S, Seeds, new_measurement, spec

WORKERS = st.sampled_from(["a", "b"])
SEARCHED = {JobState.QUEUED, JobState.RUNNING, JobState.STOPPING}


class JobLife(RuleBasedStateMachine):
    """One job, two search workers; ``leases`` remembers every lease ever given, so that old ones keep trying."""

    engine: Engine
    leases = Bundle("leases")

    @initialize()
    def begin(self) -> None:
        with self.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.store = SqlJobStore(self.engine)
        self.seeds = Seeds(self.store)
        self.job_id = self.store.create_job(spec("life"))[0].id
        self.state = JobState.QUEUED
        self.has_started = False
        self.holder: SearchLease | None = None
        self.asked = 0
        self.trials: dict[str, TrialState] = {}

    @rule(verb=st.sampled_from(JobVerb))
    def ask(self, verb: JobVerb) -> None:
        try:
            wanted = state_after(verb, self.state, has_started=self.has_started)
        except WrongState:
            with pytest.raises(WrongState):
                self.store.apply_verb(self.job_id, verb)
            return
        assert self.store.apply_verb(self.job_id, verb).state is wanted
        self.move(wanted)

    def move(self, state: JobState) -> None:
        self.state = state
        if state.is_terminal:
            self.trials = {
                trial: known if known.is_terminal else TrialState.CANCELLED for trial, known in self.trials.items()
            }

    @rule(target=leases, worker=WORKERS)
    def lease(self, worker: str) -> SearchLease | None:
        taken = self.store.lease_search(worker, lease_s=LEASE_S)
        is_free = self.holder is None or self.holder.owner == worker
        assert (taken is not None) is (self.state in SEARCHED and is_free)
        if taken is None:
            return None
        assert self.holder is None or taken.attempt > self.holder.attempt
        self.holder = taken
        if self.state is JobState.QUEUED:
            self.state, self.has_started = JobState.RUNNING, True
        return taken

    def may_write(self, lease: SearchLease) -> bool:
        return lease == self.holder and not self.state.is_terminal

    @rule(lease=leases)
    def renew(self, lease: SearchLease | None) -> None:
        if lease is None:
            return
        if lease != self.holder:
            with pytest.raises(StaleAttempt):
                self.store.renew_search(lease, lease_s=LEASE_S)
            return
        assert self.store.renew_search(lease, lease_s=LEASE_S) is self.state

    @rule(lease=leases)
    def release(self, lease: SearchLease | None) -> None:
        if lease is None:
            return
        if lease != self.holder:
            with pytest.raises(StaleAttempt):
                self.store.release_search(lease)
            return
        self.store.release_search(lease)
        self.holder = None

    @rule(by_whom=st.sampled_from(["time", "reaper"]))
    def the_holder_dies(self, by_whom: str) -> None:
        if self.holder is None:
            return
        if by_whom == "reaper":
            assert self.store.free_leases([self.holder.owner]) == 1
        else:
            with self.engine.begin() as connection:
                connection.execute(text("UPDATE job SET search_until = now() - interval '1 second'"))
        other = "a" if self.holder.owner == "b" else "b"
        # Until somebody takes the job over, the one who fell silent may still write: the fence is the attempt, not the clock.
        if self.state in SEARCHED:
            taken = self.store.lease_search(other, lease_s=LEASE_S)
            assert taken is not None and taken.attempt == self.holder.attempt + 1
            self.holder = taken
            if self.state is JobState.QUEUED:
                self.state, self.has_started = JobState.RUNNING, True
        else:
            with self.engine.begin() as connection:
                connection.execute(text("UPDATE job SET search_until = now() + interval '1 minute'"))

    @rule(lease=leases)
    def ask_a_trial(self, lease: SearchLease | None) -> None:
        if lease is None or self.asked >= 6:
            return
        if not self.may_write(lease):
            with pytest.raises(StaleAttempt):
                self.seeds.trial(lease, self.asked)
            return
        self.trials[self.seeds.trial(lease, self.asked).id] = TrialState.BUILDING
        self.asked += 1

    @rule(lease=leases, end=st.sampled_from([TrialState.MEASURING, TrialState.FAILED, TrialState.SUCCEEDED]))
    def advance_a_trial(self, lease: SearchLease | None, end: TrialState) -> None:
        if lease is None or not self.trials:
            return
        trial, state = sorted(self.trials.items())[-1]
        if not self.may_write(lease):
            with pytest.raises(StaleAttempt):
                self.store.finish_trial(lease, trial, TrialState.FAILED)
            return
        is_legal = not state.is_terminal and not (state is TrialState.BUILDING and end is TrialState.SUCCEEDED)
        if end is TrialState.MEASURING:
            if state is not TrialState.BUILDING:
                return
            self.store.add_measurement(lease, new_measurement(f"m-{trial}"), trial_id=trial)
        elif state == end:
            self.store.finish_trial(lease, trial, end)  # once more changes nothing
            return
        elif not is_legal:
            with pytest.raises(WrongState):
                self.store.finish_trial(lease, trial, end)
            return
        else:
            self.store.finish_trial(lease, trial, end)
        self.trials[trial] = end

    @rule(lease=leases, end=st.sampled_from([JobState.SUCCEEDED, JobState.STOPPED, JobState.FAILED]))
    def end_it(self, lease: SearchLease | None, end: JobState) -> None:
        if lease is None:
            return
        if not self.may_write(lease) or self.state is JobState.PAUSED:
            with pytest.raises(StaleAttempt):
                self.store.end_job(lease, end, ended_by=EndedBy.SYSTEM)
            return
        # A job that is to stop and has succeeded meanwhile ends as what was asked; one that is not cannot end as stopped.
        wanted = JobState.STOPPED if (self.state, end) == (JobState.STOPPING, JobState.SUCCEEDED) else end
        if self.state is JobState.RUNNING and end is JobState.STOPPED:
            with pytest.raises(WrongState):
                self.store.end_job(lease, end, ended_by=EndedBy.SYSTEM)
            return
        self.store.end_job(lease, end, ended_by=EndedBy.SYSTEM)
        self.move(wanted)

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        if not hasattr(self, "trials"):
            return
        snapshot = self.store.snapshot(self.job_id)
        assert snapshot.job.state is self.state
        assert snapshot.job.trials_asked == self.asked == len(snapshot.trials)
        assert {trial.id: trial.state for trial in snapshot.trials} == self.trials
        ids = [event.id for event in self.store.events(self.job_id, limit=1000)]
        assert ids == list(range(1, len(ids) + 1))
        if self.state.is_terminal:
            assert snapshot.job.finished_at is not None
            assert all(row.state is not WorkState.PENDING for row in (*snapshot.builds, *snapshot.measurements))
            assert self.store.claim_build("anybody", lease_s=LEASE_S) is None


@pytest.fixture
def machine(engine: Engine) -> Iterator[type[JobLife]]:
    JobLife.engine = engine
    yield JobLife


def test_a_jobs_life_is_as_the_model_says(machine: type[JobLife]) -> None:
    play(machine, games=6, steps=25)
