"""The agent's side of REST: claim, heartbeat, outcome, artifacts; patient where the server is away, strict where it says no."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from domain.device import Device
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
from domain.health import HealthAnswer, HealthCheck
from domain.messages import (
    ClaimAnswer,
    ClaimRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    JoinAnswer,
    JoinRequest,
    OutcomeMessage,
)
from domain.trust import UNTRUSTED, untrusted, verify_for

Answer = TypeVar("Answer", bound=BaseModel)

TIMEOUT = httpx.Timeout(10.0, connect=5.0)
PAUSE_S = 0.2  # doubled at every try, with jitter, so that a fleet does not come back in one wave
LONGEST_PAUSE_S = 5.0
ERRORS: dict[int, type[PruneloopError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict}


class _Attempt(BaseModel):
    attempt: int


class AgentApi:
    """One server, as one device sees it.

    Args:
        server_url: Base URL of the API.
        token: Device token, or a join token for ``join``.
        ca_file: Certificates to trust instead of the system's.
        transport: For tests.
        sleep: For tests.
    """

    def __init__(
        self,
        server_url: str,
        token: str,
        *,
        ca_file: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = httpx.Client(
            base_url=server_url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT,
            verify=verify_for(server_url, ca_file),
            transport=transport,
        )
        self._sleep = sleep

    def __enter__(self) -> AgentApi:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def join(self, request: JoinRequest) -> JoinAnswer:
        """Become a device. One try: a join token may be used up by a call whose answer was lost."""
        return self._ask("POST", "/v1/devices", request, JoinAnswer, tries=1)

    def claim(self, device_id: str, request: ClaimRequest) -> ClaimAnswer:
        """Ask for work. A claim whose answer was lost is handed out again, as a new attempt, by the next one."""
        return self._ask("POST", f"/v1/devices/{device_id}/claim", request, ClaimAnswer, tries=3)

    def heartbeat(self, device_id: str, request: HeartbeatRequest) -> HeartbeatAnswer:
        """Say that we are alive. One try: the next beat is the retry."""
        return self._ask("POST", f"/v1/devices/{device_id}/heartbeat", request, HeartbeatAnswer, tries=1)

    def put_outcome(self, measurement_id: str, message: OutcomeMessage, *, tries: int = 5) -> None:
        """Deliver an outcome; the same one twice is fine.

        Raises:
            StaleAttempt: The lease went to somebody else meanwhile.
            Unavailable: The server is away; keep the outcome and try again later.
        """
        self._send("PUT", f"/v1/measurements/{measurement_id}/outcome", message, tries=tries)

    def release(self, measurement_id: str, attempt: int) -> None:
        """Hand a measurement back untouched; the attempt does not count.

        Raises:
            StaleAttempt: The lease went to somebody else meanwhile.
            Unavailable: The server is away; the lease will run out.
        """
        self._send("POST", f"/v1/measurements/{measurement_id}/release", _Attempt(attempt=attempt), tries=2)

    def tell_health(self, device_id: str, check: HealthCheck) -> HealthAnswer:
        """Tell a check of the golden model; the server judges it. Raises Unavailable, NotFound on an older server."""
        return self._ask("POST", f"/v1/devices/{device_id}/health", check, HealthAnswer, tries=2)

    def device(self, device_id: str) -> Device:
        """Return this device as the server sees it: state, note, lost runtimes."""
        return self._ask("GET", f"/v1/devices/{device_id}", None, Device, tries=1)

    def is_healthy(self) -> bool:
        try:
            return self._client.get("/healthz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    @contextmanager
    def download(self, digest: str) -> Iterator[Iterator[bytes]]:
        """Open an artifact's bytes.

        Raises:
            NotFound, Forbidden, Unavailable.
        """
        try:
            with self._client.stream("GET", f"/v1/artifacts/{digest}") as response:
                if response.is_error:
                    response.read()
                    raise _error(response)
                yield response.iter_bytes(1 << 20)
        except httpx.TransportError as error:
            raise _away(self._client.base_url, error) from error

    def _ask(self, method: str, path: str, body: BaseModel | None, answer: type[Answer], *, tries: int) -> Answer:
        response = self._send(method, path, body, tries=tries)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise Unavailable(
                f"{response.request.url} answers something else than Pruneloop's API; check the server's URL.",
                code="bad_answer",
            ) from error

    def _send(self, method: str, path: str, body: BaseModel | None, *, tries: int) -> httpx.Response:
        content = None if body is None else body.model_dump_json()
        for attempt in range(tries):
            if attempt:
                pause_s = min(LONGEST_PAUSE_S, PAUSE_S * 2**attempt)
                self._sleep(pause_s * random.uniform(0.5, 1.0))
            try:
                response = self._client.request(
                    method, path, content=content, headers={"Content-Type": "application/json"}
                )
            except httpx.TransportError as error:
                problem: PruneloopError = _away(self._client.base_url, error)
                if problem.code == UNTRUSTED:
                    break
                continue
            if not response.is_error:
                return response
            problem = _error(response)
            if not isinstance(problem, Unavailable):
                break
        raise problem


def _away(url: httpx.URL, error: httpx.TransportError) -> Unavailable:
    return untrusted(str(url), error, "PRUNELOOP_AGENT_CA_FILE") or Unavailable(
        f"{url} does not answer ({type(error).__name__}: {error}); check that the server is up and reachable from here.",
        code="server_unavailable",
    )


def _error(response: httpx.Response) -> PruneloopError:
    """Turn problem+json, or whatever a proxy says instead, into an error of ours."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, Mapping):
        problem = {}
    code = str(problem.get("code") or f"http_{response.status_code}")
    message = str(problem.get("detail") or problem.get("title") or f"{response.url} answered {response.status_code}.")
    if code == StaleAttempt.default_code:
        return StaleAttempt(message)
    if response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        return Unavailable(message, code=code)
    return ERRORS.get(response.status_code, Invalid)(message, code=code)
