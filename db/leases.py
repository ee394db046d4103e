"""What builds and measurements share: who may claim a row, how its lease goes on, how it ends. All by the database's clock."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic_core import to_json
from sqlalchemy import ColumnElement, Connection, Table, and_, case, func, or_, select, update

from db.events import append_event, lock_job
from db.mapping import AnyRow
from domain.build import BuildResult
from domain.errors import Invalid, NotFound, StaleAttempt
from domain.measurement import Measured
from domain.outcome import Blame, Failed
from domain.work import MAX_ATTEMPTS, WorkState

T = TypeVar("T")

# A disk that is full or a server that is away stays so for a while: three attempts within a second would only use them up.
RETRY_AFTER_S = (5.0, 20.0)  # the first, and every later failure of the system

# An expired lease can be claimed at once. Until this has passed as well the row shows who had it, and if nobody claimed it
# meanwhile its late outcome is still taken: a short outage of the API costs no measurement.
EXPIRY_GRACE_S = 15.0


def in_seconds(seconds: float) -> ColumnElement[Any]:
    """Return the database's now plus some seconds."""
    return func.now() + timedelta(seconds=seconds)


# --- claiming -------------------------------------------------------------------------------------------------------
def is_claimable(table: Table) -> ColumnElement[bool]:
    """Pending and due, or leased by somebody who fell silent; neither cancelled nor used up."""
    return and_(
        table.c.state.in_([WorkState.PENDING, WorkState.LEASED]),  # lets the partial index serve
        or_(table.c.state == WorkState.PENDING, has_expired(table)),
        or_(table.c.not_before.is_(None), table.c.not_before <= func.now()),
        table.c.cancel_requested.is_(False),
        ~has_used_up(table),
    )


def has_expired(table: Table) -> ColumnElement[bool]:
    return and_(table.c.state == WorkState.LEASED, table.c.lease_until < func.now())


def has_used_up(table: Table) -> ColumnElement[bool]:
    return table.c.attempt - table.c.released >= MAX_ATTEMPTS


def new_lease(table: Table, lease_s: float) -> dict[str, Any]:
    """Return the columns of a lease as a claim gives it."""
    return {
        "state": WorkState.LEASED,
        "attempt": table.c.attempt + 1,
        "lease_until": in_seconds(lease_s),
        "started_at": func.now(),
        "not_before": None,
    }


# --- holding --------------------------------------------------------------------------------------------------------
def is_held(table: Table, work_id: str, attempt: int, **holder: str) -> ColumnElement[bool]:
    """The fence: this attempt has the lease. An expired one still holds while nobody else claimed."""
    return and_(
        table.c.id == work_id,
        table.c.attempt == attempt,
        table.c.state == WorkState.LEASED,
        *(table.c[column] == value for column, value in holder.items()),
    )


def hand_back(connection: Connection, table: Table, rows: ColumnElement[bool], *, counts: bool) -> int:
    """Put leased rows back to PENDING, or to CANCELLED where that was asked; return how many.

    Args:
        connection: In a transaction.
        table: ``build`` or ``measurement``.
        rows: Which; all of them leased.
        counts: Whether the attempt counts towards ``MAX_ATTEMPTS``.
    """
    values = {
        "state": case((table.c.cancel_requested, WorkState.CANCELLED.value), else_=WorkState.PENDING.value),
        "finished_at": case((table.c.cancel_requested, func.now())),
        "lease_until": None,
        "released": table.c.released + (0 if counts else 1),
    }
    return connection.execute(update(table).where(rows).values(values)).rowcount


def cancel_work(connection: Connection, table: Table, job_id: str) -> None:
    """Cancel a job's waiting rows, and ask the holders of the leased ones to stop.

    One statement: a row that is claimed or handed back meanwhile falls on one side or the other, never between.
    """
    is_pending = table.c.state == WorkState.PENDING
    values = {
        "state": case((is_pending, WorkState.CANCELLED.value), else_=table.c.state),
        "finished_at": case((is_pending, func.now())),
        "cancel_requested": True,
    }
    is_open = table.c.state.in_([WorkState.PENDING, WorkState.LEASED])
    connection.execute(update(table).where(table.c.job_id == job_id, is_open).values(values))


# --- ending ---------------------------------------------------------------------------------------------------------
def check_outcome(adapter: TypeAdapter[T], outcome: T) -> tuple[T, str]:
    """Return the outcome as it will be read back, and the sha256 of its JSON.

    Raises:
        Invalid: ``bad_outcome`` where it could be written but never read again (a NaN, say).
    """
    body = to_json(outcome, inf_nan_mode="null")
    try:
        return adapter.validate_json(body), hashlib.sha256(body).hexdigest()
    except ValidationError as error:
        raise Invalid(
            f"The outcome cannot be stored: {error.errors()[0]['msg']}; every number has to be finite.",
            code="bad_outcome",
        ) from error


def lock_work(connection: Connection, table: Table, work_id: str) -> AnyRow:
    """Lock a row of work, its job first (see ``db.events``), and return it. Raises NotFound."""
    job_id = connection.execute(select(table.c.job_id).where(table.c.id == work_id)).scalar_one_or_none()
    if job_id is None:
        raise NotFound(f"There is no {table.name} {work_id}.", metadata={"id": work_id})
    lock_job(connection, job_id)
    return connection.execute(select(table).where(table.c.id == work_id).with_for_update(key_share=True)).one()


def is_written(row: AnyRow, attempt: int, sha256: str) -> bool:
    """Whether this very outcome of this attempt was accepted before: an answer got lost and the sender tries again."""
    return bool(row.written_attempt == attempt and row.written_sha256 == sha256)


def settle(
    connection: Connection,
    table: Table,
    row: AnyRow,
    outcome: BuildResult | Measured | Failed,
    sha256: str,
    more: Mapping[str, Any] | None = None,
) -> WorkState:
    """End a locked, leased row with an outcome, or put it back for another attempt; return its new state.

    Args:
        connection: In a transaction that holds the row and its job.
        table: ``build`` or ``measurement``.
        row: As locked.
        outcome: Without raw samples.
        sha256: Of the outcome as it came.
        more: Further columns to write.
    """
    state = _state_after(row, outcome)
    values: dict[str, Any] = {
        "state": state,
        "lease_until": None,
        "written_attempt": row.attempt,
        "written_sha256": sha256,
        **(more or {}),
    }
    if state is WorkState.PENDING:
        values["last_failure"] = outcome
        if isinstance(outcome, Failed) and outcome.blame is Blame.SYSTEM:
            values["not_before"] = in_seconds(RETRY_AFTER_S[min(row.attempt - row.released, len(RETRY_AFTER_S)) - 1])
    else:
        values["finished_at"] = func.clock_timestamp()
    if state in {WorkState.DONE, WorkState.FAILED}:
        values["outcome"] = outcome
    connection.execute(update(table).where(table.c.id == row.id).values(values))
    if state is not WorkState.CANCELLED:  # then the job is over, and so are its events
        type_ = f"{table.name}.{'retried' if state is WorkState.PENDING else 'finished'}"
        append_event(connection, row.job_id, type_, _event_data(table, row, state, outcome))
    return state


def _state_after(row: AnyRow, outcome: BuildResult | Measured | Failed) -> WorkState:
    if row.cancel_requested:
        return WorkState.CANCELLED
    if not isinstance(outcome, Failed):
        return WorkState.DONE
    # A crash is the candidate's until shown otherwise, yet tried again: it may have been the device's.
    is_worth_it = outcome.blame is not Blame.CANDIDATE or outcome.retryable
    return WorkState.PENDING if is_worth_it and row.attempt - row.released < MAX_ATTEMPTS else WorkState.FAILED


def _event_data(
    table: Table, row: AnyRow, state: WorkState, outcome: BuildResult | Measured | Failed
) -> dict[str, JsonValue]:
    data: dict[str, JsonValue] = {
        f"{table.name}_id": row.id,
        "key": row.key,
        "state": state.value,
        "attempt": row.attempt,
    }
    for name in ("kind", "target", "device_id"):
        if name in table.c:
            data[name] = row._mapping[name]
    if isinstance(outcome, Failed):
        data["failure"] = outcome.model_dump(mode="json")
    return data


def used_up(row: AnyRow, *, blame: Blame) -> Failed:
    """Return the outcome of a row that nobody may try again."""
    tries = row.attempt - row.released
    before = f" The attempt before it said: {row.last_failure['reason']}" if row.last_failure else ""
    return Failed(
        stage="lease",
        reason=f"Given up after {tries} attempts: whoever worked on it fell silent and its lease ran out.{before}",
        blame=blame,
        code="attempts_used_up",
    )


def stale(work: str, work_id: str, attempt: int) -> StaleAttempt:
    return StaleAttempt(
        f"Attempt {attempt} of {work} {work_id} is no longer the one that counts: its lease ended, or the work was cancelled. "
        "Drop it and claim anew.",
        metadata={"work": work, "id": work_id, "attempt": attempt},
    )
