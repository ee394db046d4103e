"""Rows to nouns. Every column list that a noun needs stands beside the function that reads it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, JsonValue, TypeAdapter
from pydantic_core import from_json
from sqlalchemy import ColumnElement, Row, Text, case, cast, extract, func

from db.models import build, event, job, measurement, trial
from domain.build import Build, BuildOutcome
from domain.job import DeviceSelector, Job
from domain.lazy import LazyRow
from domain.measurement import Measured, Measurement, MeasurementOutcome, Samples
from domain.ports import Event
from domain.trial import Trial

AnyRow: TypeAlias = Row[*tuple[Any, ...]]
M = TypeVar("M", bound=BaseModel)

BUILD_OUTCOME: TypeAdapter[BuildOutcome] = TypeAdapter(BuildOutcome)
MEASUREMENT_OUTCOME: TypeAdapter[MeasurementOutcome] = TypeAdapter(MeasurementOutcome)


def seconds_since(moment: ColumnElement[Any]) -> ColumnElement[Any]:
    return extract("epoch", func.now() - moment)


PAUSED_S: ColumnElement[Any] = job.c.paused_s + case(
    (job.c.paused_at.is_not(None), seconds_since(job.c.paused_at)), else_=0.0
)

JOB_COLUMNS = (
    *(job.c[name] for name in ("id", "name", "spec", "state", "stage", "reason", "ended_by")),
    *(job.c[name] for name in ("created_at", "started_at", "finished_at", "trials_asked", "report")),
    PAUSED_S.label("paused_s"),
)
TRIAL_COLUMNS = (
    *(column for column in trial.c if column.name != "told"),
    trial.c.told.label("values"),
)
WORK_COLUMNS = (
    "state",
    "attempt",
    "lease_until",
    "cancel_requested",
    "outcome",
    "created_at",
    "started_at",
    "finished_at",
)
BUILD_COLUMNS = tuple(build.c[name] for name in ("id", "job_id", "key", "request", "owner", "progress", *WORK_COLUMNS))
MEASUREMENT_COLUMNS = tuple(
    measurement.c[name]
    for name in (
        *("id", "job_id", "key", "target", "selector_id", "selector_labels", "request", "device_id", "is_suspect"),
        *WORK_COLUMNS,
    )
)
UNREAD_MEASUREMENT_COLUMNS = tuple(
    cast(column, Text).label(column.name) if column.name in {"request", "outcome"} else column
    for column in MEASUREMENT_COLUMNS
)
EVENT_COLUMNS = tuple(event.c[name] for name in ("id", "job_id", "type", "data", "at"))


def job_of(row: AnyRow) -> Job:
    return _read(Job, row)


def trial_of(row: AnyRow) -> Trial:
    return _read(Trial, row)


def build_of(row: AnyRow) -> Build:
    return _read(Build, row)


def event_of(row: AnyRow) -> Event:
    return Event(**row._mapping)


def measurement_of(row: AnyRow, samples: Sequence[AnyRow] = ()) -> Measurement:
    """Return a measurement; with rows of ``measurement_sample`` its raw samples are put back into the outcome."""
    values = dict(row._mapping)
    for sample in samples:
        data = base64.b64encode(sample.data).decode("ascii")
        values["outcome"]["candidates"][sample.position]["samples"] = {"pairs": sample.pairs, "data": data}
    return _measurement(values)


def _measurement(values: dict[str, Any]) -> Measurement:
    selector = DeviceSelector(id=values.pop("selector_id"), labels=values.pop("selector_labels"))
    return Measurement.model_validate({**values, "selector": selector})


def unread_measurement_of(row: AnyRow) -> LazyRow[Measurement]:
    """Return a measurement whose request and outcome are still text: to read them is half of what a snapshot costs."""

    def read() -> Measurement:
        outcome = from_json(row.outcome) if row.outcome is not None else None
        return _measurement({**row._mapping, "request": from_json(row.request), "outcome": outcome})

    return LazyRow({"id": row.id, "key": row.key}, read)


def split_samples(outcome: MeasurementOutcome) -> tuple[MeasurementOutcome, dict[int, Samples]]:
    """Return the outcome without raw samples, and the samples by the index of their candidate."""
    if not isinstance(outcome, Measured):
        return outcome, {}
    samples = {index: timing.samples for index, timing in enumerate(outcome.candidates) if timing.samples is not None}
    bare = tuple(timing.model_copy(update={"samples": None}) for timing in outcome.candidates)
    return outcome.model_copy(update={"candidates": bare}), samples


def as_json(value: BaseModel | Mapping[str, JsonValue]) -> Any:
    """Return what a JSON column takes."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else dict(value)


def plain(text: str | None) -> str | None:
    """Return text that a TEXT column takes: a reason may quote what a device sent, and PostgreSQL knows no NUL."""
    return text.replace("\x00", "\ufffd") if text is not None else None


def _read(model: type[M], row: AnyRow) -> M:
    return model.model_validate(dict(row._mapping))
