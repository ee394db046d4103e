"""The audit log: a row a change, in the transaction of the change, so that neither is ever there without the other.

What an agent's protocol does by itself every few seconds, claiming and beating, is not in it: the lease is in the row it
holds. Nothing updates or deletes an entry but the reaper, by age.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pydantic import JsonValue
from sqlalchemy import Connection, delete, func, insert, select

from db.mapping import plain
from db.models import audit, web_session
from db.pages import coerce_page_size, make_page, read_page_token
from db.transactions import Transactions
from domain.access import AuditEntry, Principal
from domain.ports import Page

BATCH = 10_000


def note(
    connection: Connection, by: Principal, action: str, subject: str, detail: Mapping[str, JsonValue] | None = None
) -> None:
    """Write an entry."""
    values = {
        "actor": plain(by.name) or "",
        "actor_id": by.token_id or by.device_id,
        "address": by.address,
        "action": action,
        "subject": subject,
        "detail": dict(detail or {}),
    }
    connection.execute(insert(audit).values(values))


class AuditTables(Transactions):
    """Reading the log, and throwing away what is old."""

    def audit(
        self, *, actor: str | None = None, subject: str | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[AuditEntry]:
        """Return a page of the log, the latest first. Raises Invalid ``bad_page_token``."""
        list_name = f"audit:{actor or ''}:{subject or ''}"
        after = read_page_token(list_name, page_token, int)
        size = coerce_page_size(page_size)
        query = select(audit).order_by(audit.c.id.desc()).limit(size + 1)
        if actor is not None:
            query = query.where(audit.c.actor == actor)
        if subject is not None:
            query = query.where(audit.c.subject == subject)
        if after is not None:
            query = query.where(audit.c.id < after[0])
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return make_page(
            rows,
            size,
            lambda row: AuditEntry.model_validate(dict(row._mapping)),
            list_name=list_name,
            key=lambda row: (row.id,),
        )

    def forget_old(self, *, audit_days: int) -> int:
        """Delete sessions that are over and entries older than some days (0: none); returns how many entries went."""
        with self._transaction() as connection:
            connection.execute(delete(web_session).where(web_session.c.expires_at < func.now()))
            if not audit_days:
                return 0
            old = select(audit.c.id).where(audit.c.at < func.now() - timedelta(days=audit_days)).limit(BATCH)
            return connection.execute(delete(audit).where(audit.c.id.in_(old))).rowcount
