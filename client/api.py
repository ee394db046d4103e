"""The Python client: every call of the REST API as a method, errors as the server raised them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel

from api.schemas.jobs import JobArtifact, JobView
from api.schemas.plugins import PluginView
from client.errors import error_of, unreachable
from client.sse import read_messages
from domain.access import ApiToken, AuditEntry, Scope, TokenMade
from domain.artifact import ArtifactKind, ArtifactRef
from domain.device import Device
from domain.errors import Invalid, Unavailable
from domain.front import Front
from domain.health import HealthRecord
from domain.job import Job, JobSpec, JobState, JobVerb
from domain.messages import JoinTokenAnswer, JoinTokenRequest
from domain.plan import JobPlan
from domain.ports import Event
from domain.trial import Trial
from domain.trust import UNTRUSTED, verify_for

M = TypeVar("M", bound=BaseModel)

TRIES = 5
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 2.0
PAGE_SIZE = 200
BLOCK_BYTES = 1024 * 1024
STREAM_QUIET_S = 30.0
LEAST_WAIT_S = 0.05
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
TRANSFER_TIMEOUT = httpx.Timeout(300.0, connect=5.0)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def _lines(response: httpx.Response, deadline: float | None) -> Iterator[str]:
    """Yield the lines of a stream; ends early, without an error, once the deadline has passed."""
    try:
        for line in response.iter_lines():
            yield line.rstrip("\r\n")
            if deadline is not None and time.monotonic() >= deadline:
                return
    except httpx.ReadTimeout:
        if deadline is None or time.monotonic() < deadline:
            raise


def _body_of(spec: JobSpec | Mapping[str, Any] | bytes) -> tuple[bytes, str]:
    """Return a job as bytes and their media type; bytes are taken as YAML, which JSON is."""
    if isinstance(spec, bytes):
        return spec, "application/yaml"
    value = spec.model_dump(mode="json") if isinstance(spec, JobSpec) else dict(spec)
    return json.dumps(value).encode(), "application/json"


def _still_running(view: JobView) -> Unavailable:
    return Unavailable(f"Job {view.id} is still {view.state} ({view.stage}).", code="still_running")


class PruneloopClient:
    """Talks to one server.

    Args:
        base_url: Where the server is, e.g. ``http://127.0.0.1:8420``.
        token: Bearer token of a person.
        transport: How requests travel; an in-process application's transport works as well as the network.
        ca_file: Certificates to trust instead of the system's.

    Every method raises the domain's errors: Invalid, NotFound, WrongState, Unauthorized, Forbidden, Unavailable.
    Reads are tried again where the connection breaks; so is ``submit``, which carries an idempotency key.
    """

    def __init__(
        self, base_url: str, token: str, *, transport: httpx.BaseTransport | None = None, ca_file: Path | None = None
    ) -> None:
        self.base_url = base_url.rstrip("/")
        host = httpx.URL(self.base_url).host
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT,
            transport=transport,
            verify=verify_for(self.base_url, ca_file),
            trust_env=host not in LOOPBACK,  # a proxy of the environment is not for this machine
        )
        self._etags: dict[str, tuple[str, bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- jobs -------------------------------------------------------------------------------------------------------
    def submit(self, spec: JobSpec | Mapping[str, Any] | bytes, *, idempotency_key: str | None = None) -> Job:
        """Submit a job.

        Args:
            spec: The job; bytes are taken as YAML (JSON is YAML) and checked by the server.
            idempotency_key: Same key and job: the first answer. Default: one of its own, which makes tries safe.
        """
        content, media_type = _body_of(spec)
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex, "Content-Type": media_type}
        return Job.model_validate_json(
            self._send("POST", "/v1/jobs", content=content, headers=headers, may_repeat=True).content
        )

    def plan(self, spec: JobSpec | Mapping[str, Any] | bytes) -> JobPlan:
        """Return what a job would do, its groups, devices and cost; nothing is stored."""
        content, media_type = _body_of(spec)
        headers = {"Content-Type": media_type}
        params = {"validate_only": "true"}
        return JobPlan.model_validate_json(
            self._send("POST", "/v1/jobs", params=params, content=content, headers=headers, may_repeat=True).content
        )

    def clone(
        self, job_id: str, changes: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Job:
        """Submit the same job again; ``changes`` holds the top-level fields that differ, whole."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        answer = self._send(
            "POST", f"/v1/jobs/{job_id}/clone", json=dict(changes or {}), headers=headers, may_repeat=True
        )
        return Job.model_validate_json(answer.content)

    def job(self, job_id: str) -> JobView:
        """Return a job and how far it is; unchanged ones cost the server no body."""
        return JobView.model_validate_json(self._get_cached(f"/v1/jobs/{job_id}"))

    def jobs(
        self, *, states: Sequence[JobState] = (), labels: Sequence[str] = (), limit: int | None = None
    ) -> list[Job]:
        """Return jobs, newest first; all pages, or the first ``limit``.

        Args:
            states: Only these.
            labels: ``key=value``, or ``key`` for any value; a job must carry all.
            limit: At most so many.
        """
        wanted = {"state": [state.value for state in states], "label": list(labels)}
        return self._items("/v1/jobs", Job, wanted, limit)

    def trials(self, job_id: str) -> list[Trial]:
        return self._items(f"/v1/jobs/{job_id}/trials", Trial)

    def front(self, job_id: str, target: int = 0) -> Front:
        return Front.model_validate_json(self._get_cached(f"/v1/jobs/{job_id}/front?target={target}"))

    def artifacts(self, job_id: str) -> list[JobArtifact]:
        return self._items(f"/v1/jobs/{job_id}/artifacts", JobArtifact)

    def pause(self, job_id: str) -> Job:
        return self._verb(job_id, JobVerb.PAUSE)

    def resume(self, job_id: str) -> Job:
        return self._verb(job_id, JobVerb.RESUME)

    def stop(self, job_id: str) -> Job:
        """Finish running trials and keep the front."""
        return self._verb(job_id, JobVerb.STOP)

    def cancel(self, job_id: str) -> Job:
        """Kill running work."""
        return self._verb(job_id, JobVerb.CANCEL)

    def watch(self, job_id: str, *, after: int = 0, timeout_s: float | None = None) -> Iterator[Event]:
        """Yield a job's events past an id until the job is over; comes back where the stream broke.

        Raises:
            Unavailable: ``still_running`` where ``timeout_s`` is up; the job goes on.
        """
        quiet_tries = 0
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                for event in self._stream(job_id, after, deadline):
                    after, quiet_tries = event.id, 0
                    yield event
                view = self.job(job_id)
                if view.state.is_terminal:
                    return
                if deadline is not None and time.monotonic() >= deadline:
                    raise _still_running(view)
            except (httpx.TransportError, Unavailable) as error:
                if isinstance(error, Unavailable) and error.code == "still_running":
                    raise
                quiet_tries += 1
                if quiet_tries > TRIES:
                    raise unreachable(self.base_url, error) from error
                time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**quiet_tries))

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        poll_s: float = 0.5,
        on_change: Callable[[JobView], None] | None = None,
    ) -> JobView:
        """Return the job once it is over.

        Args:
            job_id: The job.
            timeout_s: Give up after this long; None: never.
            poll_s: Time between looks.
            on_change: Called with every look.

        Raises:
            Unavailable: ``still_running`` where time is up; the job goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            view = self.job(job_id)
            if on_change is not None:
                on_change(view)
            if view.state.is_terminal:
                return view
            if deadline is not None and time.monotonic() >= deadline:
                raise _still_running(view)
            time.sleep(poll_s)

    # --- files ------------------------------------------------------------------------------------------------------
    def upload_artifact(self, path: Path, kind: ArtifactKind | str) -> ArtifactRef:
        """Upload a file: weights (safetensors), data (npz) or onnx."""
        if not path.is_file():
            raise Invalid(f"There is no file {path}; give the path of the file to upload.", code="no_such_file")
        with path.open("rb") as file:
            answer = self._send(
                "POST",
                "/v1/artifacts",
                params={"kind": str(kind)},
                content=iter(lambda: file.read(BLOCK_BYTES), b""),
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)},
                timeout=TRANSFER_TIMEOUT,
            )
        return ArtifactRef.model_validate_json(answer.content)

    def download(self, digest: str, path: Path) -> Path:
        """Fetch an artifact into a file, which appears only once its bytes have proved to be the digest's.

        Raises:
            Unavailable: ``artifact_corrupt`` where they do not, after one more try.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            for _ in range(2):
                if self._fetch(digest, part) == digest:
                    part.replace(path)
                    return path
        finally:
            part.unlink(missing_ok=True)
        raise Unavailable(f"The bytes that came are not those of {digest}; fetch it again.", code="artifact_corrupt")

    # --- devices ----------------------------------------------------------------------------------------------------
    def devices(self) -> list[Device]:
        return self._items("/v1/devices", Device)

    def health(self, device_id: str) -> list[HealthRecord]:
        """Return a device's checks of its golden model, the latest first."""
        return self._items(f"/v1/devices/{device_id}/health", HealthRecord)

    def create_join_token(
        self, *, expires_in_s: int = 3600, uses: int = 1, labels: Mapping[str, str] | None = None
    ) -> JoinTokenAnswer:
        wanted = JoinTokenRequest(expires_in_s=expires_in_s, uses=uses, labels=dict(labels or {}))
        answer = self._send("POST", "/v1/join_tokens", json=wanted.model_dump(mode="json"))
        return JoinTokenAnswer.model_validate_json(answer.content)

    def pause_device(self, device_id: str, *, note: str | None = None) -> Device:
        return self._device_verb(device_id, "pause", note)

    def resume_device(self, device_id: str, *, note: str | None = None) -> Device:
        return self._device_verb(device_id, "resume", note)

    def drain_device(self, device_id: str, *, note: str | None = None) -> Device:
        return self._device_verb(device_id, "drain", note)

    def remove_device(self, device_id: str) -> None:
        self._send("DELETE", f"/v1/devices/{device_id}")

    # --- tokens -----------------------------------------------------------------------------------------------------
    def create_token(self, name: str, scopes: Sequence[Scope | str], *, expires_in_s: int | None = None) -> TokenMade:
        """Make a named token; its text is in the answer and nowhere else. ``expires_in_s`` None: the server's default."""
        wanted = {"name": name, "scopes": [str(scope) for scope in scopes]}
        life = {} if expires_in_s is None else {"expires_in_s": expires_in_s}
        answer = self._send("POST", "/v1/tokens", json={**wanted, **life})
        return TokenMade.model_validate_json(answer.content)

    def tokens(self) -> list[ApiToken]:
        return self._items("/v1/tokens", ApiToken)

    def revoke_token(self, token_id: str) -> None:
        self._send("DELETE", f"/v1/tokens/{token_id}")

    def audit(self, *, limit: int | None = None) -> list[AuditEntry]:
        """Return entries of the audit log, the latest first."""
        return self._items("/v1/audit", AuditEntry, limit=limit)

    def plugins(self) -> list[PluginView]:
        answer = json.loads(self._send("GET", "/v1/plugins").content)
        return [PluginView.model_validate(item) for item in answer["items"]]

    def is_alive(self) -> bool:
        """Tell whether a server answers, asked once."""
        try:
            return self._http.get("/healthz", timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False

    # --- how --------------------------------------------------------------------------------------------------------
    def _verb(self, job_id: str, verb: JobVerb) -> Job:
        return Job.model_validate_json(self._send("POST", f"/v1/jobs/{job_id}/{verb.value}").content)

    def _device_verb(self, device_id: str, verb: str, note: str | None) -> Device:
        answer = self._send("POST", f"/v1/devices/{device_id}/{verb}", json={"note": note})
        return Device.model_validate_json(answer.content)

    def _items(
        self, path: str, model: type[M], params: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> list[M]:
        found: list[M] = []
        token = ""
        while True:
            size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(found))
            query = {**(params or {}), "page_size": size, "page_token": token}
            page = json.loads(self._send("GET", path, params=query).content)
            found += [model.model_validate(item) for item in page["items"]]
            token = page["next_page_token"]
            if not token or (limit is not None and len(found) >= limit):
                return found

    def _get_cached(self, path: str) -> bytes:
        etag, body = self._etags.get(path, ("", b""))
        response = self._send("GET", path, headers={"If-None-Match": etag} if etag else {})
        if response.status_code == 304:
            return body
        if "ETag" in response.headers:
            self._etags = {path: (response.headers["ETag"], response.content)}
        return response.content

    def _stream(self, job_id: str, after: int, deadline: float | None) -> Iterator[Event]:
        headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
        timeout = TIMEOUT
        if deadline is not None:
            rest_s = max(LEAST_WAIT_S, min(STREAM_QUIET_S, deadline - time.monotonic()))
            timeout = httpx.Timeout(rest_s, connect=5.0)
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
                raise error_of(response)
            for message in read_messages(_lines(response, deadline)):
                body = json.loads(message.data)
                yield Event(
                    id=int(body["id"]),
                    job_id=body["job_id"],
                    type=body["type"],
                    data=body["data"],
                    at=datetime.fromisoformat(body["at"]),
                )

    def _fetch(self, digest: str, path: Path) -> str:
        """Stream an artifact into a file; return the digest of what came."""
        hasher = hashlib.sha256()
        try:
            with (
                self._http.stream("GET", f"/v1/artifacts/{digest}", timeout=TRANSFER_TIMEOUT) as response,
                path.open("wb") as file,
            ):
                if response.status_code >= 400:
                    response.read()
                    raise error_of(response)
                for block in response.iter_bytes(BLOCK_BYTES):
                    hasher.update(block)
                    file.write(block)
        except httpx.TransportError as error:
            raise unreachable(self.base_url, error) from error
        return f"sha256:{hasher.hexdigest()}"

    def _send(self, method: str, path: str, *, may_repeat: bool = False, **options: Any) -> httpx.Response:
        may_repeat = may_repeat or method == "GET"
        for attempt in range(1, TRIES + 1):
            is_last = attempt == TRIES or not may_repeat
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                away = unreachable(self.base_url, error)
                if is_last or away.code == UNTRUSTED:
                    raise away from error
            else:
                if response.status_code < 400:
                    return response
                error_found = error_of(response)
                is_passing = isinstance(error_found, Unavailable) or error_found.code == "idempotency_in_progress"
                if is_last or not is_passing:
                    raise error_found
            # Not all at once: those that were refused together would be so again.
            time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")
