"""A converter in an environment of its own, from here: a child process that is started once and asked again and again.

It is not trusted to end: every step has a time limit, after which the child goes with all it started, and the next step starts
another. It gets a scratch folder, none of our settings, and one thread.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from domain.errors import Unavailable
from pruning.converters import ConverterSettings, why_missing
from pruning.exporters.outputs import ExportFailed

HERE = Path(__file__).parent.parent / "converters"
REBUILD = HERE.parent / "rebuild.py"
START_S = 240.0  # importing takes five seconds of a processor, and there may be little of one
STEP_S = 600.0
SAID_CHARS = 300


class Converter:
    """One format's converter.

    Args:
        format: ``litert`` or ``executorch``.
        python: Of its environment; None: as the settings say.
        step_s: The longest a step may take.
    """

    def __init__(self, format: str, python: Path | None = None, *, step_s: float = STEP_S) -> None:
        self.format = format
        self._python = python
        self._step_s = step_s
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def require(self) -> None:
        """Raise Unavailable ``exporter_missing`` where the environment is not there."""
        missing = why_missing(self.format) if self._python is None else None
        if missing is not None:
            raise Unavailable(missing, code="exporter_missing", metadata={"format": self.format})

    def carry_out(self, step: str, given: Mapping[str, bytes], wanted: str, **options: Any) -> bytes:
        """Return the file ``wanted`` that a step makes of the files ``given``.

        Raises:
            Unavailable: ``exporter_missing``.
            ExportFailed: Where the converter says no, ends or takes too long (``export_timeout``).
        """
        self.require()
        with self._lock, tempfile.TemporaryDirectory(prefix=f"pruneloop-{self.format}-") as place:
            folder = Path(place)
            for name, data in given.items():
                (folder / name).write_bytes(data)
            if self._child is None or not self._child.is_alive():
                self._child = _Child(self.format, self._python or ConverterSettings().python_of(self.format))
            child = self._child
            try:
                child.ask({"step": step, "folder": place, "options": options}, self._step_s)
                return (folder / wanted).read_bytes()
            except TimeoutError as error:
                child.end()
                message = f"The {self.format} converter did not finish in {self._step_s:g} s; leave {self.format} out of this job."
                raise ExportFailed(message, code="export_timeout") from error
            except OSError as error:
                raise ExportFailed(f"The {self.format} converter gives no {wanted}: {error}") from error

    def end(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.end()


class _Child:
    def __init__(self, format: str, python: Path) -> None:
        self._format = format
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._waiting = b""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PRUNELOOP_", "PYTHON"))}
        command = [str(python), "-I", "-W", "ignore", str(HERE / "child.py"), format, str(REBUILD)]
        try:
            self._process = subprocess.Popen(
                command,
                env={**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(f"{python} does not start ({error})", code="exporter_missing") from error
        atexit.register(self.end)
        try:
            self._answer(START_S)
        except (ExportFailed, TimeoutError) as error:
            words = self._last_words()
            self.end()
            raise Unavailable(
                f"The environment of the {format} converter at {python} does not work: {words}. Make it anew:"
                f" pruneloop exporters install {format}",
                code="exporter_missing",
            ) from error

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> None:
        assert self._process.stdin is not None
        self._words.seek(0, os.SEEK_END)
        with suppress(BrokenPipeError):  # that it ended is told by its answer
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._answer(timeout_s)
        if "error" in answer:
            raise ExportFailed(f"{self._format} does not take the model: {answer['error']}")

    def end(self) -> None:
        atexit.unregister(self.end)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._words):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """Return the next line; raises TimeoutError, or ExportFailed where the child ended."""
        assert self._process.stdout is not None
        end_s = time.monotonic() + timeout_s
        while b"\n" not in self._waiting:
            left_s = end_s - time.monotonic()
            if left_s <= 0 or not select.select([self._process.stdout], [], [], left_s)[0]:
                raise TimeoutError
            read = os.read(self._process.stdout.fileno(), 65536)
            if not read:
                code = self._process.wait()
                how = signal.Signals(-code).name if code < 0 else f"code {code}"
                raise ExportFailed(f"The {self._format} converter ended ({how}): {self._last_words()}")
            self._waiting += read
        line, _, self._waiting = self._waiting.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise ExportFailed(f"The {self._format} converter talks nonsense: {line[:80]!r}") from error
        return answer if isinstance(answer, dict) else {"error": "an answer that is none"}

    def _last_words(self) -> str:
        size = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, size - 4096))
        lines = [line.strip() for line in self._words.read().decode(errors="replace").splitlines() if line.strip()]
        return (lines or ["it says nothing"])[-1][:SAID_CHARS]
