"""What a decision may ask the loop to do. Each is one write, fenced by the lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from domain.job import EndedBy, JobState, Stage
from domain.ports import NewBuild, NewMeasurement
from domain.trial import TrialState, TrialValues


@dataclass(frozen=True)
class Enter:
    """Show people another stage, or another reason for being in this one."""

    stage: Stage
    reason: str | None = None


@dataclass(frozen=True)
class StartBuild:
    """Queue a build; with ``may_adopt`` another job's finished one of the same content serves as well."""

    build: NewBuild
    may_adopt: bool = False


@dataclass(frozen=True)
class StartMeasurement:
    measurement: NewMeasurement
    trial_id: str | None = None


@dataclass(frozen=True)
class FinishTrial:
    trial_id: str
    state: TrialState
    values: TrialValues | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Ask:
    """Ask the study of a target for one more trial."""

    target: int


@dataclass(frozen=True)
class Report:
    data: Mapping[str, JsonValue]


@dataclass(frozen=True)
class End:
    state: JobState
    ended_by: EndedBy
    reason: str | None = None


@dataclass(frozen=True)
class GiveBack:
    """Let the lease go; nothing can be done before somebody else acts."""

    retry_after_s: float = 0.0


Action = Enter | StartBuild | StartMeasurement | FinishTrial | Ask | Report | End | GiveBack
