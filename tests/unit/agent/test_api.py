"""The agent's calls: patient where the server is away, strict where it says no."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from domain.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    PruneloopError,
    StaleAttempt,
    Unauthorized,
    Unavailable,
)
from domain.messages import ClaimRequest, HeartbeatRequest, OutcomeMessage
from domain.outcome import Blame, Failed
from workers.agent.api import AgentApi

FAILED = OutcomeMessage(attempt=1, outcome=Failed(stage="load", reason="no", blame=Blame.CANDIDATE))
Answer = Callable[[httpx.Request], httpx.Response]


class Script:
    """Gives the answers in turn, the last one for ever; an exception is raised."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def api(script: Script, pauses: list[float] | None = None) -> AgentApi:
    noted = pauses if pauses is not None else []
    return AgentApi("https://server.example", "secret", transport=httpx.MockTransport(script), sleep=noted.append)


def test_a_claim_carries_the_token_and_reads_the_answer() -> None:
    script = Script(httpx.Response(200, json={"claim": None, "reason": "paused", "field_of_a_newer_server": 1}))
    assert api(script).claim("dev", ClaimRequest()).reason == "paused"
    assert script.requests[0].headers["authorization"] == "Bearer secret"
    assert script.requests[0].url.path == "/v1/devices/dev/claim"


@pytest.mark.parametrize(
    "trouble", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.Response(503), httpx.Response(429)]
)
def test_an_outcome_is_sent_again_after_trouble_with_growing_pauses(trouble: httpx.Response | Exception) -> None:
    script, pauses = Script(trouble, trouble, httpx.Response(204)), list[float]()
    api(script, pauses).put_outcome("m", FAILED)
    assert len(script.requests) == 3
    assert json.loads(script.requests[2].content)["outcome"]["status"] == "failed"
    assert len(pauses) == 2 and pauses[1] > pauses[0] / 2 > 0


def test_a_server_that_stays_away_is_unavailable() -> None:
    script = Script(httpx.ConnectError("refused"))
    with pytest.raises(Unavailable, match="check that the server is up"):
        api(script).put_outcome("m", FAILED, tries=4)
    assert len(script.requests) == 4


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (409, "stale_attempt", StaleAttempt),
        (409, "wrong_state", Conflict),
        (401, "unauthorized", Unauthorized),
        (403, "forbidden", Forbidden),
        (404, "not_found", NotFound),
        (422, "invalid_input", Invalid),
    ],
)
def test_a_no_is_final_and_keeps_its_code(status: int, code: str, error: type[PruneloopError]) -> None:
    script = Script(httpx.Response(status, json={"code": code, "detail": "because"}))
    with pytest.raises(error, match="because") as caught:
        api(script).put_outcome("m", FAILED)
    assert caught.value.code == code
    assert len(script.requests) == 1


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"[1]", b"", b"\xff\xfe"])
def test_what_a_proxy_says_instead_is_understood_as_away(body: bytes) -> None:
    with pytest.raises(Unavailable):
        api(Script(httpx.Response(502, content=body))).claim("dev", ClaimRequest())


def test_an_answer_of_something_else_is_named() -> None:
    with pytest.raises(Unavailable, match="check the server's URL"):
        api(Script(httpx.Response(200, content=b"<html>hello</html>"))).claim("dev", ClaimRequest())


def test_a_heartbeat_is_not_repeated() -> None:
    script = Script(httpx.ConnectError("refused"))
    with pytest.raises(Unavailable):
        api(script).heartbeat("dev", HeartbeatRequest())
    assert len(script.requests) == 1


def test_a_download_streams_and_its_errors_are_ours() -> None:
    with api(Script(httpx.Response(200, content=b"bytes"))).download("sha256:x") as pieces:
        assert b"".join(pieces) == b"bytes"
    with pytest.raises(NotFound), api(Script(httpx.Response(404, json={"code": "not_found"}))).download("sha256:x"):
        pass
    with pytest.raises(Unavailable), api(Script(httpx.ReadError("lost"))).download("sha256:x"):
        pass
