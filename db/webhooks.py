"""Messages to webhooks: an outbox row in the transaction that ends a job, then a delivery for each hook, tried until it is taken.

At least once: who takes a delivery holds it for a while, and where it is not settled in time somebody else sends it again.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, and_, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert

from db.ids import new_id
from db.leases import in_seconds
from db.mapping import AnyRow, plain
from db.models import job, job_end, webhook_delivery
from db.pages import coerce_page_size, make_page, moment_in_token, read_page_token
from db.transactions import Transactions
from domain.ports import Page
from domain.webhook import Delivery, DeliveryView, pause_after

BATCH = 100
MAX_ERROR = 500
COLUMNS = tuple(
    webhook_delivery.c[name]
    for name in ("id", "hook", "job_id", "attempts", "created_at", "next_at", "delivered_at", "last_error")
)


def note_end(connection: Connection, job_id: str) -> None:
    """Remember in the transaction that ends a job that it is to be told."""
    connection.execute(insert(job_end).values(job_id=job_id))


class WebhookTables(Transactions):
    """The reaper's side of webhooks. Any number of reapers may run."""

    def spread_ends(self, hooks: Sequence[str]) -> int:
        """Make a delivery for each hook out of each job that ended since; returns how many jobs."""
        taken = (
            select(job_end.c.id, job_end.c.job_id).order_by(job_end.c.id).limit(BATCH).with_for_update(skip_locked=True)
        )
        names = ("id", "name", "state", "ended_by", "reason", "labels", "created_at", "finished_at")
        with self._transaction() as connection:
            ends = connection.execute(taken).all()
            if not ends:
                return 0
            ids = [row.job_id for row in ends]
            rows = connection.execute(select(*(job.c[name] for name in names)).where(job.c.id.in_(ids))).all()
            messages = [
                {"id": new_id("message"), "hook": hook, "job_id": row.id, "body": _body(row), "next_at": func.now()}
                for row in rows
                for hook in hooks
            ]
            for message in messages:
                connection.execute(upsert(webhook_delivery).values(message).on_conflict_do_nothing())
            connection.execute(delete(job_end).where(job_end.c.id.in_([row.id for row in ends])))
            return len(ends)

    def take_delivery(self, hooks: Sequence[str], *, hold_s: float) -> Delivery | None:
        """Take the delivery that is due for longest, of one of the hooks; None: nothing is due."""
        due = (
            select(webhook_delivery.c.id)
            .where(webhook_delivery.c.next_at <= func.now(), webhook_delivery.c.hook.in_(hooks))
            .order_by(webhook_delivery.c.next_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        take = (
            update(webhook_delivery)
            .where(webhook_delivery.c.id == due.scalar_subquery())
            .values(attempts=webhook_delivery.c.attempts + 1, next_at=in_seconds(hold_s))
            .returning(*(webhook_delivery.c[name] for name in ("id", "hook", "body", "attempts")))
        )
        with self._transaction() as connection:
            row = connection.execute(take).one_or_none()
        return Delivery(row.id, row.hook, row.body, row.attempts) if row is not None else None

    def settle_delivery(self, taken: Delivery, *, error: str | None, is_final: bool = False) -> None:
        """Write what came of a try; a failed one is due again after its pause, unless that was the last.

        Args:
            taken: As taken; where somebody else took it since, nothing is written.
            error: None: it was delivered.
            is_final: The hook asked for no more.
        """
        pause_s = None if is_final or error is None else pause_after(taken.attempts)
        values = {
            "next_at": in_seconds(pause_s) if pause_s is not None else None,
            "last_error": plain(error)[:MAX_ERROR] if error else None,  # type: ignore[index]
            "delivered_at": func.now() if error is None else None,
        }
        still_ours = and_(webhook_delivery.c.id == taken.id, webhook_delivery.c.attempts == taken.attempts)
        with self._transaction() as connection:
            connection.execute(update(webhook_delivery).where(still_ours).values(values))

    def deliveries(self, *, page_size: int = 50, page_token: str = "") -> Page[DeliveryView]:
        """Return a page of messages, newest first. Raises Invalid ``bad_page_token``."""
        after = read_page_token("deliveries", page_token, str, str)
        size = coerce_page_size(page_size)
        order = webhook_delivery.c.created_at, webhook_delivery.c.id
        query = select(*COLUMNS).order_by(*(column.desc() for column in order)).limit(size + 1)
        if after is not None:
            query = query.where(tuple_(*order) < tuple_(moment_in_token(after[0]), after[1]))
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return make_page(
            rows,
            size,
            lambda row: DeliveryView.model_validate(dict(row._mapping)),
            list_name="deliveries",
            key=lambda row: (row.created_at.isoformat(), row.id),
        )


def _body(row: AnyRow) -> dict[str, object]:
    moments = {name: getattr(row, name).isoformat() for name in ("created_at", "finished_at")}
    plain_ones = {name: getattr(row, name) for name in ("name", "state", "ended_by", "reason", "labels")}
    data = {"job_id": row.id, **plain_ones, **moments}
    return {"type": "job.ended", "timestamp": moments["finished_at"], "data": data}
