"""The outermost layer: names, origins, headers, cookies, and how often somebody may fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from api.auth import COOKIE
from api.limits import MOST_ADDRESSES, Buckets, Known, Limits
from domain.errors import RateLimited
from tests.unit.api.conftest import World
from tests.unit.api.fakes import ADMIN_TOKEN, DEVICE_TOKEN, READ_TOKEN

OWN = {"Origin": "http://server.example"}


# --- names ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8420", "server.example.evil.example", "127.0.0.1.evil.example", "a..b"),
        *("[::1", "::1]", "[evil.example]", "server.example@evil.example", "127.0.0.1.", "1.2.3", ""),
    ],
)
def test_a_name_that_is_not_this_servers_is_refused(world: World, host: str) -> None:
    answer = world.ask("GET", "/healthz", token=None, headers={"Host": host})
    if host in {"[::1", "127.0.0.1."}:  # sloppy, but still an address of ours
        return
    assert (answer.status_code, answer.json()["code"]) == (421, "unknown_host")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8420", "10.1.2.3:80", "[::1]:8420", "localhost", "api:8420", "SERVER.example"]
)
def test_addresses_single_words_and_the_public_name_are_this_server(world: World, host: str) -> None:
    assert world.ask("GET", "/healthz", token=None, headers={"Host": host}).status_code == 200


def test_the_operator_can_add_names(world: World) -> None:
    world.app.state.deps = replace(world.app.state.deps, allowed_hosts=("prune.lab.example",))
    assert world.ask("GET", "/healthz", headers={"Host": "prune.lab.example"}).status_code == 200


# --- headers --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/healthz", "/", "/v1/jobs", "/nowhere", "/openapi.json", "/v1/jobs/job1/events"])
def test_every_answer_says_what_a_browser_may_do_with_it(world: World, path: str) -> None:
    for token in (ADMIN_TOKEN, None):
        headers = world.ask("GET", path, token=token).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe-eval" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"]
        assert "access-control-allow-origin" not in headers


def test_a_crash_has_the_headers_too(world: World) -> None:
    world.store.crash = RuntimeError("boom")
    answer = world.ask("GET", "/v1/jobs/job1")
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")


def test_other_sites_are_not_let_in_by_a_preflight(world: World) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "DELETE"}
    answer = world.ask("OPTIONS", "/v1/devices/dev1", token=None, headers=headers)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_over_tls_a_browser_is_told_to_stay_there(world: World) -> None:
    answer = world.http.get("https://server.example/healthz")
    assert answer.headers["strict-transport-security"]
    assert "strict-transport-security" not in world.ask("GET", "/healthz").headers


# --- sessions -------------------------------------------------------------------------------------------------------
def log_in(world: World, token: str = ADMIN_TOKEN) -> dict[str, str]:
    answer = world.ask("POST", "/v1/session", token=None, json={"token": token}, headers=OWN)
    assert answer.status_code == 201, answer.text
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/", "expires="))
    assert token not in answer.text
    world.http.cookies.clear()
    return {"Cookie": cookie.partition(";")[0]}


def test_a_cookie_opens_what_its_token_opens_and_no_more(world: World) -> None:
    cookie = log_in(world, READ_TOKEN)
    assert world.ask("GET", "/v1/jobs", token=None, headers=cookie).status_code == 200
    assert world.ask("GET", "/v1/session", token=None, headers=cookie).json()["name"] == "reader"
    assert world.ask("GET", "/v1/tokens", token=None, headers=cookie).status_code == 403
    assert world.ask("POST", "/v1/jobs/job1/cancel", token=None, headers=cookie | OWN).status_code == 403


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://server.example.evil.example", "http://server.example:1", ""]
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_with_a_cookie_only_our_own_page_changes_anything(world: World, method: str, origin: str | None) -> None:
    path = {"POST": "/v1/devices/dev1/drain", "DELETE": "/v1/devices/dev1"}[method]
    cookie = log_in(world)
    headers = cookie if origin is None else cookie | {"Origin": origin}
    answer = world.ask(method, path, token=None, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")
    assert world.ask(method, path, token=None, headers=cookie | OWN).status_code in {200, 204}


def test_another_site_cannot_log_somebody_in(world: World) -> None:
    headers = {"Origin": "http://evil.example"}
    answer = world.ask("POST", "/v1/session", token=None, json={"token": ADMIN_TOKEN}, headers=headers)
    assert answer.status_code == 403


def test_after_logging_out_the_cookie_is_nobodys(world: World) -> None:
    cookie = log_in(world)
    assert world.ask("DELETE", "/v1/session", token=None, headers=cookie | OWN).status_code == 204
    assert world.ask("GET", "/v1/session", token=None, headers=cookie).status_code == 401


def test_a_device_and_a_guess_get_no_session(world: World) -> None:
    for token, status in ((DEVICE_TOKEN, 403), ("guess", 401)):
        answer = world.ask("POST", "/v1/session", token=None, json={"token": token}, headers=OWN)
        assert (answer.status_code, "set-cookie" in answer.headers) == (status, False)


def test_over_tls_the_cookie_stays_there(world: World) -> None:
    answer = world.http.post("https://server.example/v1/session", json={"token": ADMIN_TOKEN})
    assert "Secure" in answer.headers["set-cookie"]
    world.http.cookies.clear()


def test_the_cookies_name_is_stable() -> None:
    assert COOKIE == "pruneloop_session"


# --- limits ---------------------------------------------------------------------------------------------------------
def test_wrong_tokens_are_soon_told_to_wait_and_known_ones_never(world: World) -> None:
    world.app.state.deps = replace(world.app.state.deps, limits=Limits(failing=Buckets(5, 0.01)))
    assert world.ask("GET", "/v1/jobs").status_code == 200
    codes = [world.ask("GET", "/v1/jobs", token=f"guess-{number}").status_code for number in range(7)]
    assert codes == [401] * 5 + [429] * 2
    answer = world.ask("GET", "/v1/jobs", token="guess")
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert int(answer.headers["retry-after"]) > 1
    assert world.ask("GET", "/v1/jobs").status_code == 200, "who was known a moment ago is not shut out"
    assert world.ask("GET", "/v1/jobs", token=READ_TOKEN).status_code == 429, "a right guess would look like this"
    assert world.ask("POST", "/v1/session", token=None, json={"token": READ_TOKEN}).status_code == 429


def test_joining_is_limited_whatever_the_token(world: World) -> None:
    world.app.state.deps = replace(world.app.state.deps, limits=Limits(joining=Buckets(2, 0.01)))
    codes = [world.ask("POST", "/v1/devices", token="guess", json={}).status_code for _ in range(4)]
    assert codes == [422, 422, 429, 429]


def test_tries_come_back_with_time() -> None:
    now_s = 0.0
    buckets = Buckets(2, 0.5, clock=lambda: now_s)
    buckets.take("a")
    buckets.take("a")
    with pytest.raises(RateLimited) as caught:
        buckets.take("a")
    assert caught.value.metadata == {"retry_after_s": 2}
    buckets.take("b")
    now_s = 2.0
    buckets.take("a")
    with pytest.raises(RateLimited):
        buckets.look("a")


def test_memory_is_bounded_however_many_knock() -> None:
    buckets, known = Buckets(2, 0.5), Known()
    for number in range(MOST_ADDRESSES + 50):
        buckets.take(str(number))
        known.add(str(number))
    assert len(buckets._left) == len(known._seen) == MOST_ADDRESSES
    assert "0" not in known and str(MOST_ADDRESSES) in known
