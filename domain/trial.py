"""A trial: one ask and one tell of a job, for one target."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.candidate import Candidate


class TrialState(StrEnum):
    """BUILDING -> MEASURING -> SUCCEEDED; the other ends say why there is no point on the plot.

    REJECTED: an earlier, cheaper stage showed it dominated. INFEASIBLE: the candidate is to blame (told to the sampler).
    FAILED: device or system is to blame after all retries. DUPLICATE: same build as an earlier trial, its outcome reused.
    """

    BUILDING = "building"
    MEASURING = "measuring"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    DUPLICATE = "duplicate"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self not in {TrialState.BUILDING, TrialState.MEASURING}


TRIAL_TRANSITIONS: dict[TrialState, frozenset[TrialState]] = {
    TrialState.BUILDING: frozenset(set(TrialState) - {TrialState.BUILDING, TrialState.SUCCEEDED}),
    TrialState.MEASURING: frozenset(set(TrialState) - {TrialState.BUILDING, TrialState.MEASURING, TrialState.REJECTED}),
    **{state: frozenset() for state in TrialState if state.is_terminal},
}


class TrialValues(BaseModel):
    """What the search is told: error and latency ratio (both to be made small), and named constraints (<= 0 holds)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: float
    latency_ratio: float
    constraints: dict[str, float] = Field(default_factory=dict)


class Trial(BaseModel):
    """A trial as stored. ``number`` counts within the job, ``study_number`` within its target's study."""

    model_config = ConfigDict(frozen=True)

    id: str
    job_id: str
    number: int
    target: int
    study_number: int
    state: TrialState
    params: dict[str, JsonValue] = Field(description="The sampler's parameters, by name.")
    distributions: dict[str, JsonValue] = Field(
        default_factory=dict, description="The sampler's own JSON of each parameter's range."
    )
    seed_name: str | None = Field(default=None, description="Which seed it was, if any: uniform-0.3, ...")
    candidate: Candidate
    build_id: str | None = None
    measurement_id: str | None = None
    duplicate_of: int | None = None
    values: TrialValues | None = None
    reason: str | None = None
    created_at: datetime
    finished_at: datetime | None = None

    @property
    def seed_stem(self) -> str:
        """The name of the seed without the mark of what the space cannot express; empty where the sampler chose."""
        return (self.seed_name or "").removesuffix("~")
