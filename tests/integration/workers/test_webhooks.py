"""Webhooks on real tables, to a real server on this machine: signed, tried again, at least once, and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, text

from db.store import SqlJobStore
from domain.job import JobVerb
from domain.webhook import PAUSES_S, pause_after, secret_of
from settings import WebhookSettings
from tests.integration.db.conftest import engine, migrated_url, new_database, seeds, session_engine, store  # noqa: F401
from tests.integration.db.samples import spec
from workers.webhooks import Hook, Webhooks

SECRET = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@dataclass
class Receiver:
    """What came in, and what is answered: the first of ``answers`` first, 204 once they are used up."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status = made.answers.pop(0) if made.answers else 204
            self.send_response(status)
            if status in {302, 307}:
                self.send_header("Location", made.url + "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def hooks_of(receiver: Receiver, *names: str) -> dict[str, Hook]:
    return {name: Hook(receiver.url + "/hook", secret_of(f"whsec_{SECRET}")) for name in names or ("ops",)}


def ended_job(store: SqlJobStore, name: str = "resnet") -> str:  # noqa: F811
    job, _ = store.create_job(spec(name))
    store.apply_verb(job.id, JobVerb.CANCEL)
    return job.id


def make_due(engine: Engine) -> None:  # noqa: F811
    with engine.begin() as connection:
        connection.execute(text("UPDATE webhook_delivery SET next_at = now() WHERE next_at IS NOT NULL"))


def test_a_jobs_end_is_told_once_and_signed(store: SqlJobStore, receiver: Receiver) -> None:  # noqa: F811
    job_id = ended_job(store)
    store.create_job(spec("runs on"))
    webhooks = Webhooks(store, hooks_of(receiver))
    assert (webhooks.sweep(), webhooks.sweep()) == (1, 0)
    ((headers, body),) = receiver.received
    told = json.loads(body)
    assert (told["type"], told["data"]["job_id"], told["data"]["state"]) == ("job.ended", job_id, "CANCELLED")
    assert told["data"]["name"] == "resnet" and told["data"]["ended_by"] == "user"
    # The receiver's side, written from the specification: github.com/standard-webhooks/standard-webhooks.
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    wanted = base64.b64encode(hmac.new(base64.b64decode(SECRET), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    (shown,) = store.deliveries().items
    assert (shown.attempts, shown.next_at, shown.last_error) == (1, None, None) and shown.delivered_at is not None


def test_a_failed_one_is_tried_again_under_the_same_id(
    store: SqlJobStore,  # noqa: F811
    engine: Engine,  # noqa: F811
    receiver: Receiver,
) -> None:
    ended_job(store)
    receiver.answers = [500, 302]
    webhooks = Webhooks(store, hooks_of(receiver))
    assert (webhooks.sweep(), webhooks.sweep()) == (1, 0), "not before its pause is over"
    assert store.deliveries().items[0].last_error == "answered 500"
    make_due(engine)
    webhooks.sweep()
    assert [headers["webhook-id"] for headers, _ in receiver.received] == [receiver.received[0][0]["webhook-id"]] * 2
    assert store.deliveries().items[0].last_error == "answered 302", "and the redirect was not followed"
    make_due(engine)
    webhooks.sweep()
    (shown,) = store.deliveries().items
    assert (shown.attempts, shown.last_error) == (3, None) and shown.delivered_at is not None


def test_a_receiver_that_is_away_or_wants_no_more(store: SqlJobStore, engine: Engine, receiver: Receiver) -> None:  # noqa: F811
    ended_job(store)
    away = Webhooks(store, {"ops": Hook("http://127.0.0.1:9/", b"x" * 32)})
    away.sweep()
    assert "ConnectError" in (store.deliveries().items[0].last_error or "")
    with engine.begin() as connection:
        connection.execute(text("UPDATE webhook_delivery SET attempts = :n, next_at = now()"), {"n": len(PAUSES_S)})
    away.sweep()
    assert store.deliveries().items[0].next_at is None, "twelve tries are enough"
    ended_job(store, "another")
    receiver.answers = [410]
    Webhooks(store, hooks_of(receiver)).sweep()
    assert all(item.next_at is None and item.delivered_at is None for item in store.deliveries().items)


def test_a_try_that_is_never_settled_is_made_again(store: SqlJobStore, engine: Engine, receiver: Receiver) -> None:  # noqa: F811
    ended_job(store)
    store.spread_ends(["ops"])
    taken = store.take_delivery(["ops"], hold_s=60)
    assert taken is not None and store.take_delivery(["ops"], hold_s=60) is None, "held by one"
    make_due(engine)  # its holder was killed
    Webhooks(store, hooks_of(receiver)).sweep()
    store.settle_delivery(taken, error="too late")
    (shown,) = store.deliveries().items
    assert shown.delivered_at is not None and shown.last_error is None, "the first holder has no say any more"


def test_many_reapers_tell_each_end_to_each_hook_once(store: SqlJobStore, receiver: Receiver) -> None:  # noqa: F811
    jobs = {ended_job(store, str(number)) for number in range(8)}
    hooks = hooks_of(receiver, "ops", "chat")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: Webhooks(store, hooks).sweep(), range(3)))
    Webhooks(store, hooks).sweep()
    told = [json.loads(body)["data"]["job_id"] for _, body in receiver.received]
    assert sorted(told) == sorted([*jobs, *jobs])


def test_without_hooks_nothing_piles_up(store: SqlJobStore, engine: Engine) -> None:  # noqa: F811
    ended_job(store)
    assert Webhooks(store, {}).sweep() == 0
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM job_end")).scalar_one() == 0
    assert store.deliveries().items == ()


def test_a_receiver_that_never_ends_its_answer_is_left(store: SqlJobStore) -> None:  # noqa: F811
    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("nobody reads what a receiver says")

    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Endless()))
    ended_job(store)
    assert Webhooks(store, {"ops": Hook("http://hook.example/", b"x" * 32)}, transport=transport).sweep() == 1
    assert store.deliveries().items[0].delivered_at is not None


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("ftp://x/", f"whsec_{SECRET}"),
        ("file:///etc/passwd", f"whsec_{SECRET}"),
        ("https://x/", SECRET),
        ("https://x/", "whsec_short"),
        ("https://x/", "whsec_" + base64.b64encode(b"x" * 23).decode()),
        ("https://x/", "whsec_!!!!"),
    ],
)
def test_a_hook_the_operator_got_wrong_is_refused_at_the_start(url: str, secret: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WebhookSettings.model_validate({"url": url, "secret": secret})
    assert SECRET not in str(caught.value)


def test_the_pauses_grow_to_two_days_in_all() -> None:
    pauses = [pause_after(attempts) for attempts in range(1, 14)]
    assert pauses == [*PAUSES_S, None, None]
    assert 36 * 3600 < sum(PAUSES_S) < 72 * 3600
