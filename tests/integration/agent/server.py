"""A server as an agent sees it: a real socket, the routes an agent calls, and what it was told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from domain.artifact import ArtifactKind, ArtifactRef, digest_of_file
from domain.device import DeviceState
from domain.health import HealthAnswer, HealthCheck, HealthVerdict
from domain.measurement import MeasurementRequest
from domain.messages import (
    BrokerAddress,
    Claim,
    ClaimAnswer,
    HeartbeatAction,
    HeartbeatAnswer,
    HeartbeatRequest,
    JoinAnswer,
    JoinRequest,
    OutcomeMessage,
)


class FakeServer:
    """Hands out the requests given to it, once each; keeps what agents say."""

    def __init__(self, broker: BrokerAddress) -> None:
        self.broker = broker
        self.files: dict[str, bytes] = {}
        self.checks: list[HealthCheck] = []
        self.released: list[str] = []
        self.waiting: list[MeasurementRequest] = []
        self.claims = 0
        self.empty_claims = 0
        self.joined: list[JoinRequest] = []
        self.beats: list[HeartbeatRequest] = []
        self.outcomes: list[tuple[str, OutcomeMessage]] = []
        self.action = HeartbeatAction.CONTINUE
        self.tokens: set[str] = set()
        handler = type("Handler", (_Handler,), {"server_of_ours": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def add(self, path: Path, kind: ArtifactKind) -> ArtifactRef:
        ref = ArtifactRef(digest=digest_of_file(path), size_bytes=path.stat().st_size, kind=kind)
        self.files[ref.digest] = path.read_bytes()
        return ref

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def wait_until(self, holds: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
        until_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < until_s, f"never happened; outcomes: {self.outcomes}, beats: {len(self.beats)}"
            time.sleep(0.01)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of one call."""
        if method == "POST" and path == "/v1/devices":
            self.joined.append(JoinRequest.model_validate_json(body))
            answer = JoinAnswer(device_id="dev_a", name="board", device_token="device-token", broker=self.broker)
            return 201, answer.model_dump_json().encode()
        if path.endswith("/claim"):
            if not self.waiting:
                self.empty_claims += 1
                return 200, ClaimAnswer(reason="nothing waits").model_dump_json().encode()
            self.claims += 1
            claim = Claim(measurement_id=f"m{self.claims}", attempt=1, lease_s=1.5, request=self.waiting.pop(0))
            return 200, ClaimAnswer(claim=claim).model_dump_json().encode()
        if path.endswith("/heartbeat"):
            self.beats.append(HeartbeatRequest.model_validate_json(body))
            return 200, HeartbeatAnswer(action=self.action, server_time=datetime.now(UTC)).model_dump_json().encode()
        if path.endswith("/health"):
            self.checks.append(HealthCheck.model_validate_json(body))
            said = HealthAnswer(verdict=HealthVerdict.LEARNING, state=DeviceState.ACTIVE)
            return 200, said.model_dump_json().encode()
        if path.endswith("/release"):
            self.released.append(path.split("/")[3])
            return 204, b""
        if path.startswith("/v1/artifacts/"):
            data = self.files.get(path.removeprefix("/v1/artifacts/"))
            return (404, json.dumps({"code": "not_found"}).encode()) if data is None else (200, data)
        if method == "PUT":
            self.outcomes.append((path.split("/")[3], OutcomeMessage.model_validate_json(body)))
            return 204, b""
        return 404, b"{}"


class _Handler(BaseHTTPRequestHandler):
    server_of_ours: FakeServer
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        ours = self.server_of_ours
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        ours.tokens.add(self.headers.get("Authorization", ""))
        status, answer = ours.answer(self.command, self.path, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _do  # noqa: N815 - the names http.server looks for

    def log_message(self, format: str, *args: object) -> None:
        pass
