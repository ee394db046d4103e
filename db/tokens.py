"""Named tokens and the sessions opened with them: whom a secret stands for.

Only sha256 hashes are kept: a secret holds 256 random bits, so nothing slower is needed.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, bindparam, exists, func, insert, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert

from db.audit import note
from db.ids import new_id
from db.joining import sha256_of
from db.mapping import AnyRow
from db.models import api_token, device, web_session
from db.pages import coerce_page_size, make_page, moment_in_token, read_page_token
from db.transactions import Transactions
from domain.access import SYSTEM, ApiToken, Principal, Scope
from domain.device import DeviceState
from domain.errors import Conflict, NotFound
from domain.ports import Page

DEVICE_SCOPES = frozenset({Scope.DEVICE.value})
USED_EVERY = timedelta(minutes=1)  # a token's last use is not worth a write each time

COLUMNS = tuple(column for column in api_token.c if column.name != "token_sha256")


IS_LIVE = and_(
    api_token.c.revoked_at.is_(None), or_(api_token.c.expires_at.is_(None), api_token.c.expires_at > func.now())
)
IS_DUE = or_(api_token.c.last_used_at.is_(None), api_token.c.last_used_at < func.now() - USED_EVERY)
LIVE = select(api_token, IS_DUE.label("is_due")).where(IS_LIVE)  # built once: every request asks it
BY_TOKEN = LIVE.where(api_token.c.token_sha256 == bindparam("sha256"))
BY_SESSION = LIVE.where(
    api_token.c.id
    == select(web_session.c.token_id)
    .where(web_session.c.session_sha256 == bindparam("sha256"), web_session.c.expires_at > func.now())
    .scalar_subquery()
)


class TokenTables(Transactions):
    """Being recognised."""

    def principal(self, token: str) -> Principal | None:
        """Return whom a bearer token stands for; None if nobody, expired, revoked, or a device that was removed.

        A join token is nobody.
        """
        sha256 = sha256_of(token)
        with self._reading() as connection:
            row = connection.execute(BY_TOKEN, {"sha256": sha256}).one_or_none()
            if row is not None:
                return _named(connection, row) if hmac.compare_digest(row.token_sha256, sha256) else None
            own = select(device.c.id, device.c.name, device.c.token_sha256).where(
                device.c.token_sha256 == sha256, device.c.state != DeviceState.REMOVED
            )
            row = connection.execute(own).one_or_none()
            if row is None or not hmac.compare_digest(row.token_sha256, sha256):
                return None
            return Principal(name=row.name, scopes=DEVICE_SCOPES, device_id=row.id)

    def set_token(self, name: str, token: str, scopes: frozenset[str]) -> bool:
        """Create or replace a named token that never expires; the one before it stands for nobody from now on.

        Returns:
            False where just this token was revoked: it stays so, and nothing is written.
        """
        sha256 = sha256_of(token)
        values = {"token_sha256": sha256, "scopes": sorted(scopes), "expires_at": None}
        put = (
            upsert(api_token)
            .values(id=new_id("token"), name=name, created_by=SYSTEM.name, **values)
            .on_conflict_do_update(index_elements=["name"], index_where=api_token.c.revoked_at.is_(None), set_=values)
        )
        revoked = exists().where(api_token.c.token_sha256 == sha256, api_token.c.revoked_at.is_not(None))
        with self._transaction() as connection:
            if connection.execute(select(revoked)).scalar_one():
                return False
            connection.execute(put)
        return True

    def create_token(
        self, token: str, *, name: str, scopes: Sequence[Scope], expires_in: timedelta | None, by: Principal = SYSTEM
    ) -> ApiToken:
        """Insert a token. Raises Conflict ``name_taken``; the name of a revoked one is free."""
        values = {
            "id": new_id("token"),
            "name": name,
            "token_sha256": sha256_of(token),
            "scopes": [scope.value for scope in scopes],
            "created_by": by.name,
            "expires_at": func.now() + expires_in if expires_in is not None else None,
        }
        add = upsert(api_token).values(values).on_conflict_do_nothing().returning(*COLUMNS)
        with self._transaction() as connection:
            row = connection.execute(add).one_or_none()
            if row is None:
                raise Conflict(
                    f"A token named {name} is there already; revoke it first, or choose another name.",
                    code="name_taken",
                    metadata={"name": name},
                )
            note(connection, by, "token.create", row.id, {"name": name, "scopes": [*scopes]})
        return _token_of(row)

    def tokens(self, *, page_size: int = 50, page_token: str = "") -> Page[ApiToken]:
        """Return a page of the named tokens, newest first. Raises Invalid ``bad_page_token``."""
        after = read_page_token("tokens", page_token, str, str)
        size = coerce_page_size(page_size)
        query = select(*COLUMNS).order_by(api_token.c.created_at.desc(), api_token.c.id.desc()).limit(size + 1)
        if after is not None:
            place = tuple_(moment_in_token(after[0]), after[1])
            query = query.where(tuple_(api_token.c.created_at, api_token.c.id) < place)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return make_page(
            rows, size, _token_of, list_name="tokens", key=lambda row: (row.created_at.isoformat(), row.id)
        )

    def revoke_token(self, token_id: str, *, by: Principal = SYSTEM) -> None:
        """Revoke a token and what was opened with it; a second time changes nothing.

        Raises:
            NotFound: No such token.
            Conflict: ``last_admin`` where nobody could make another one afterwards.
        """
        is_admin = and_(IS_LIVE, api_token.c.scopes.any_() == Scope.ADMIN.value, api_token.c.expires_at.is_(None))
        with self._transaction() as connection:
            # All of them, in one order: two admins that revoke each other at once must not both succeed.
            admins = select(api_token.c.id).where(is_admin).order_by(api_token.c.id).with_for_update()
            lasting = set(connection.execute(admins).scalars())
            row = connection.execute(select(*COLUMNS).where(api_token.c.id == token_id)).one_or_none()
            if row is None:
                raise NotFound(
                    f"There is no token {token_id}; GET /v1/tokens lists those there are.", metadata={"id": token_id}
                )
            if row.revoked_at is not None:
                return
            if lasting == {token_id}:
                raise Conflict(
                    "This is the last admin token that does not expire; make another one first.", code="last_admin"
                )
            end = update(api_token).where(api_token.c.id == token_id).values(revoked_at=func.now())
            connection.execute(end)
            connection.execute(web_session.delete().where(web_session.c.token_id == token_id))
            note(connection, by, "token.revoke", token_id, {"name": row.name})

    def open_session(self, token: str, session: str, *, lasts: timedelta, address: str = "") -> datetime | None:
        """Let a session stand for whom a named token stands for, no longer than the token itself.

        Returns:
            When it ends; None where the token is nobody's, or a device's: a device has no pages to look at.
        """
        with self._transaction() as connection:
            row = connection.execute(BY_TOKEN, {"sha256": sha256_of(token)}).one_or_none()
            if row is None:
                return None
            ends = func.least(func.now() + lasts, row.expires_at)
            add = insert(web_session).values(session_sha256=sha256_of(session), token_id=row.id, expires_at=ends)
            expires_at: datetime = connection.execute(add.returning(web_session.c.expires_at)).scalar_one()
            by = Principal(row.name, frozenset(row.scopes), token_id=row.id, address=address)
            note(connection, by, "session.open", row.id)
            return expires_at

    def session_principal(self, session: str) -> Principal | None:
        """Return whom a session stands for; None if nobody, or where it or its token is over."""
        with self._reading() as connection:
            row = connection.execute(BY_SESSION, {"sha256": sha256_of(session)}).one_or_none()
            return _named(connection, row) if row is not None else None

    def close_session(self, session: str, *, by: Principal = SYSTEM) -> None:
        """Let a session stand for nobody from now on; one that is over stays so."""
        end = web_session.delete().where(web_session.c.session_sha256 == sha256_of(session))
        with self._transaction() as connection:
            ended = connection.execute(end.returning(web_session.c.token_id)).scalar_one_or_none()
            if ended is not None:
                note(connection, by, "session.close", ended)


def _named(connection: Connection, row: AnyRow) -> Principal:
    if row.is_due:
        # Whoever is slower finds the row locked and leaves it: the other one's time will do.
        mine = select(api_token.c.id).where(api_token.c.id == row.id).with_for_update(skip_locked=True)
        seen = update(api_token).where(api_token.c.id.in_(mine)).values(last_used_at=func.now())
        connection.execute(seen)
    return Principal(name=row.name, scopes=frozenset(row.scopes), token_id=row.id)


def _token_of(row: AnyRow) -> ApiToken:
    return ApiToken.model_validate(dict(row._mapping))
