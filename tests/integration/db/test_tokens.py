"""Named tokens, sessions and the audit log, on real tables."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from db.store import SqlJobStore
from domain.access import Principal, Scope
from domain.errors import Conflict, Invalid, NotFound, WrongState
from domain.job import JobVerb
from tests.integration.db.samples import spec

ANN = Principal("ann", frozenset({"admin"}), token_id="token_ann", address="10.0.0.7")
HOUR = timedelta(hours=1)


def make(store: SqlJobStore, name: str = "ci", *scopes: Scope, life: timedelta | None = HOUR) -> str:
    return store.create_token(f"secret-{name}", name=name, scopes=scopes or (Scope.READ,), expires_in=life, by=ANN).id


def age(engine: Engine, table: str, column: str, seconds: float) -> None:
    with engine.begin() as connection:
        change = f"UPDATE {table} SET {column} = {column} - make_interval(secs => :s)"
        connection.execute(text(change), {"s": seconds})


def test_a_token_is_known_until_it_expires(store: SqlJobStore, engine: Engine) -> None:
    made = make(store, "ci", Scope.SUBMIT)
    assert store.principal("secret-ci") == Principal("ci", frozenset({"submit"}), token_id=made)
    age(engine, "api_token", "expires_at", 3601)
    assert store.principal("secret-ci") is None


def test_a_revoked_token_is_nobody_at_once_and_stays_listed(store: SqlJobStore) -> None:
    made = make(store)
    store.revoke_token(made, by=ANN)
    assert store.principal("secret-ci") is None
    (listed,) = store.tokens().items
    assert listed.revoked_at is not None
    store.revoke_token(made, by=ANN)
    assert [entry.action for entry in store.audit().items] == ["token.revoke", "token.create"], "once is once"
    with pytest.raises(NotFound):
        store.revoke_token("token_none")


def test_a_name_is_taken_until_its_token_is_revoked(store: SqlJobStore) -> None:
    made = make(store)
    with pytest.raises(Conflict) as caught:
        store.create_token("other", name="ci", scopes=(Scope.READ,), expires_in=None)
    assert caught.value.code == "name_taken"
    store.revoke_token(made)
    store.create_token("other", name="ci", scopes=(Scope.READ,), expires_in=None)
    assert [entry.name for entry in store.tokens().items] == ["ci", "ci"]


def test_the_last_admin_cannot_be_revoked_also_not_by_two_at_once(store: SqlJobStore) -> None:
    ids = [make(store, name, Scope.ADMIN, life=None) for name in ("a", "b")]
    make(store, "short", Scope.ADMIN)  # expires, so it does not count

    def revoke(token_id: str) -> bool:
        try:
            store.revoke_token(token_id)
        except Conflict as error:
            assert error.code == "last_admin"
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(revoke, ids)) == [False, True]


def test_a_revoked_file_token_is_not_let_in_again_by_a_start(store: SqlJobStore) -> None:
    assert store.set_token("admin", "of-the-file", frozenset({"admin"}))
    make(store, "other", Scope.ADMIN, life=None)
    (first,) = [token for token in store.tokens().items if token.name == "admin"]
    store.revoke_token(first.id)
    assert not store.set_token("admin", "of-the-file", frozenset({"admin"}))
    assert store.principal("of-the-file") is None
    assert store.set_token("admin", "anew", frozenset({"admin"}))


def test_last_use_is_noted_to_the_minute(store: SqlJobStore, engine: Engine) -> None:
    make(store)
    assert store.tokens().items[0].last_used_at is None
    store.principal("secret-ci")
    first = store.tokens().items[0].last_used_at
    store.principal("secret-ci")
    assert store.tokens().items[0].last_used_at == first, "not a write each time"
    age(engine, "api_token", "last_used_at", 61)
    store.principal("secret-ci")
    seen = store.tokens().items[0].last_used_at
    assert seen is not None and first is not None and seen >= first


def test_only_hashes_are_kept(store: SqlJobStore, engine: Engine) -> None:
    make(store)
    store.open_session("secret-ci", "session-secret", lasts=HOUR)
    with engine.connect() as connection:
        for table in ("api_token", "web_session", "audit"):
            assert "secret" not in str(connection.execute(text(f"SELECT * FROM {table}")).all())


# --- sessions -------------------------------------------------------------------------------------------------------
def test_a_session_lasts_no_longer_than_itself_its_token_or_a_logout(store: SqlJobStore, engine: Engine) -> None:
    made = make(store)
    ends = store.open_session("secret-ci", "s1", lasts=timedelta(hours=9))
    assert ends == store.tokens().items[0].expires_at
    store.open_session("secret-ci", "s2", lasts=timedelta(seconds=30))
    store.open_session("secret-ci", "s3", lasts=HOUR)
    who = Principal("ci", frozenset({"read"}), token_id=made)
    assert [store.session_principal(name) for name in ("s1", "s2", "s3", "s4")] == [who, who, who, None]
    age(engine, "web_session", "expires_at", 31)
    assert store.session_principal("s2") is None
    store.close_session("s3", by=who)
    store.close_session("s3", by=who)
    assert store.session_principal("s3") is None and store.session_principal("s1") == who
    store.revoke_token(made)
    assert store.session_principal("s1") is None


def test_nobody_and_devices_open_no_session(store: SqlJobStore) -> None:
    make(store, "gone", life=timedelta(seconds=-1))
    for token in ("unknown", "secret-gone", ""):
        assert store.open_session(token, "s", lasts=HOUR) is None


def test_sessions_that_are_over_are_thrown_away(store: SqlJobStore, engine: Engine) -> None:
    make(store, life=None)
    for name in ("s1", "s2"):
        store.open_session("secret-ci", name, lasts=HOUR if name == "s1" else timedelta(seconds=-1))
    store.forget_old(audit_days=0)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM web_session")).scalar_one() == 1


# --- audit ----------------------------------------------------------------------------------------------------------
def test_a_change_and_its_entry_are_there_together_or_not_at_all(store: SqlJobStore) -> None:
    job, _ = store.create_job(spec("a"), by=ANN, idempotency_key="k")
    store.create_job(spec("a"), by=ANN, idempotency_key="k")
    store.apply_verb(job.id, JobVerb.CANCEL, by=ANN)
    with pytest.raises(WrongState):
        store.apply_verb(job.id, JobVerb.CANCEL, by=ANN)
    entries = store.audit(subject=job.id).items
    assert [(entry.action, entry.actor, entry.actor_id, entry.address) for entry in entries] == [
        ("job.cancel", "ann", "token_ann", "10.0.0.7"),
        ("job.create", "ann", "token_ann", "10.0.0.7"),
    ]


def test_the_log_is_paged_by_actor_and_subject(store: SqlJobStore) -> None:
    for number in range(5):
        store.create_job(spec(f"j{number}"), by=ANN)
    store.create_job(spec("other"))
    seen, token = [], ""
    while True:
        page = store.audit(actor="ann", page_size=2, page_token=token)
        seen += [entry.id for entry in page.items]
        token = page.next_page_token
        if not token:
            break
        with pytest.raises(Invalid):
            store.audit(page_token=token)
    assert seen == sorted(seen, reverse=True) and len(seen) == 5


def test_what_is_old_goes(store: SqlJobStore, engine: Engine) -> None:
    store.create_job(spec("old"))
    age(engine, "audit", "at", 11 * 86400)
    store.create_job(spec("new"))
    assert store.forget_old(audit_days=0) == 0
    assert store.forget_old(audit_days=10) == 1
    assert [entry.detail for entry in store.audit().items] == [{"name": "new"}]
