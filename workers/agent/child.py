"""The parent's side of a measured process: start it, talk to it, watch its memory, and end it with all it started."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MODULE = "workers.agent.measure_child"
PRELOADED = ("onnxruntime",)  # of nearly every measurement; others are imported when asked for
HOME = Path(__file__).resolve().parents[2]
REASON_CHARS = 400
TAIL_BYTES = 10_000


@dataclass(frozen=True)
class Ended:
    """The child is gone: how, and the last thing it said on standard error."""

    returncode: int
    last_words: str

    @property
    def signal_name(self) -> str | None:
        """Name of the signal that ended it, None if it left by itself."""
        if self.returncode >= 0:
            # Under an emulator the parent sees 128 + signal.
            return _signal_name(self.returncode - 128) if self.returncode > 128 else None
        return _signal_name(-self.returncode)


class MeasuredProcess:
    """One child in a process group of its own."""

    def __init__(self, interpreter: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - without a name: nothing is left behind by a kill
        self._buffer = b""
        self._process = subprocess.Popen(
            [*interpreter, "-P", "-m", MODULE, *PRELOADED],  # -P: nothing is imported from the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, line: str) -> None:
        """Hand over the job. A child that died meanwhile is seen by the next ``receive``."""
        with suppress(BrokenPipeError):
            self._input.write(line.encode() + b"\n")
            self._input.flush()

    def receive(self, timeout_s: float) -> dict[str, Any] | Ended | None:
        """Return the next message, how the child ended, or None if nothing came in time."""
        until_s = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            remaining_s = until_s - time.monotonic()
            ready, _, _ = select.select([self._output], [], [], max(0.0, remaining_s))
            if not ready:
                return None
            chunk = os.read(self._output.fileno(), 1 << 16)
            if not chunk:
                return self._ended()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        return message if isinstance(message, dict) else {}

    def resident_bytes(self) -> int:
        """Return the memory it holds now; 0 once it is gone."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def end(self) -> None:
        """Kill it and everything it started, and clear up. May be called twice."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(BrokenPipeError):
            self._input.close()
        self._output.close()
        self._errors.close()

    def _ended(self) -> Ended:
        try:
            # Its output is closed; a child that lives on without it is no use either.
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - TAIL_BYTES))
        words = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return Ended(self._process.returncode, words[-1].strip()[:REASON_CHARS] if words else "")


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: our packages can be imported, nothing of ours that is secret is passed on."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")}
    path = extra.get("PYTHONPATH", kept.get("PYTHONPATH", ""))
    return {
        **kept,
        # The statistics of a few hundred pairs need no threads, and idle ones would spin beside the measurement.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        **extra,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HOME), path))),
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
