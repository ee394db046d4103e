"""Small jobs, and a user who submits them, steers some of them, and follows their events, whatever happens to the server."""

from __future__ import annotations

import random
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

import httpx

from client.sse import read_messages
from tests.chaos.system import System

PATIENCE_S = 120.0
ENDED = {"SUCCEEDED", "STOPPED", "CANCELLED", "FAILED"}


def small_job(name: str, *, kind: str, seed: int, trials: int) -> dict[str, Any]:
    """Return a job whose builds take a second or so, for a device that replays or a real one."""
    runtime = "replay" if kind == "replay" else "onnxruntime"
    return {
        "name": name,
        "model": {"name": "convnet", "params": {"width": 16}},
        "data": {"name": "digits"},
        "targets": [{"device": {"labels": {"kind": kind}}, "runtime": runtime, "speedup": 1.5}],
        "objective": {"max_drop": 0.1},
        "levels": ["channel"],
        "budget": {"trials": trials, "wall_s": 3600},
        "recovery": {"epochs": 1.0, "distill": False, "precision": "fp32"},
        "final": {"keep": 2, "epochs": 1.0},
        "seed": seed,
    }


class User:
    """Someone who does not give up: every call is made until it is answered.

    Args:
        system: Running.
        seed: Of which jobs are steered, and how.
    """

    def __init__(self, system: System, seed: int) -> None:
        self._http = httpx.Client(
            base_url=system.url, headers={"Authorization": f"Bearer {system.token}"}, timeout=10.0
        )
        self._dice = random.Random(seed)
        self.jobs: dict[str, str] = {}  # idempotency key -> id
        self.mismatched: list[str] = []
        self.verbs: list[tuple[str, str, int]] = []  # job, verb, status
        self.seen: dict[str, list[int]] = {}  # job -> ids of events, as they came
        self._threads: list[threading.Thread] = []
        self._is_over = False

    def submit(self, spec: dict[str, Any]) -> str:
        """Submit a job, twice with one key, and follow it."""
        key = uuid.uuid4().hex
        ids = [
            str(self._ask("POST", "/v1/jobs", json=spec, headers={"Idempotency-Key": key}).json()["id"])
            for _ in range(2)
        ]
        if ids[0] != ids[1]:
            self.mismatched.append(f"{key}: {ids}")
        self.jobs[key] = ids[0]
        self.seen[ids[0]] = []
        self._run(self._follow, ids[0])
        return ids[0]

    def steer(self, job_id: str, *verbs: str) -> None:
        """Ask verbs of a job at random moments."""
        self._run(self._steer, job_id, *verbs)

    def state(self, job_id: str) -> str:
        return str(self._ask("GET", f"/v1/jobs/{job_id}").json()["state"])

    def front(self, job_id: str) -> dict[str, Any]:
        return dict(self._ask("GET", f"/v1/jobs/{job_id}/front", params={"target": 0}).json())

    def close(self) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join(timeout=30)

    def _run(self, what: Any, *arguments: str) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _steer(self, job_id: str, *verbs: str) -> None:
        for verb in verbs:
            time.sleep(self._dice.uniform(4.0, 12.0))
            self.verbs.append((job_id, verb, self._ask("POST", f"/v1/jobs/{job_id}/{verb}").status_code))

    def _follow(self, job_id: str) -> None:
        """Read the stream to its end, each time from the last event seen."""
        seen = self.seen[job_id]
        while not self._is_over:
            headers = {"Last-Event-ID": str(seen[-1])} if seen else {}
            stream = self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=20.0)
            with suppress(httpx.HTTPError, ValueError), stream as answer:
                if answer.status_code != 200:
                    raise ValueError(answer.status_code)
                for message in read_messages(line.rstrip("\r\n") for line in answer.iter_lines()):
                    if message.id:
                        seen.append(int(message.id))
                    if self._is_over or (message.event == "job.state" and ENDED & set(message.data.split('"'))):
                        return
            time.sleep(0.3)

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        until = time.monotonic() + PATIENCE_S
        while True:
            problem: object
            try:
                answer = self._http.request(method, path, **more)
                if answer.status_code < 500:
                    assert answer.status_code < 400 or answer.status_code == 409, answer.text
                    return answer
                problem = answer.text
            except httpx.TransportError as error:
                problem = error
            assert time.monotonic() < until, f"{method} {path} was not answered for {PATIENCE_S} s: {problem}"
            time.sleep(0.2)
