"""A job's groups, found in a child process with a limit on memory and time: the model is somebody else's.

``python -m workers.inspecting ARTIFACT_DIR MAX_BYTES [DATASETS_DIR]`` is the child: a job as JSON on stdin, the network or a
problem on stdout.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from domain.errors import PruneloopError, Unavailable
from domain.job import JobSpec
from domain.plan import Network

MAX_MEMORY_BYTES = 8 * 1024**3  # address space: torch alone maps three
MAX_S = 60.0
KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "LANG", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")


@dataclass
class ChildInspector:
    """Finds groups, one child at a time: further callers are told to come back.

    Args:
        artifact_dir: Where models and data lie.
        datasets_dir: What jobs may read by ``data.path``, where that is on this machine too.
        max_s: After this the child is killed.
        max_memory_bytes: Its address space.
        fetch: Brings a file to ``artifact_dir`` where the store is elsewhere: the child has no keys to it.
    """

    artifact_dir: Path
    datasets_dir: Path | None = None
    max_s: float = MAX_S
    max_memory_bytes: int = MAX_MEMORY_BYTES
    fetch: Callable[[str], object] | None = None
    _one: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, spec: JobSpec) -> Network:
        """Return a job's network. Raises PruneloopError with the reason and the next step."""
        if not self._one.acquire(timeout=self.max_s):
            raise Unavailable("Another model is being looked at; ask again in a minute.")
        try:
            if self.fetch is not None:
                for digest in spec.inputs:
                    self.fetch(digest)
            return self._ask(spec)
        finally:
            self._one.release()

    def _ask(self, spec: JobSpec) -> Network:
        # No database URL, no broker URL, no token: the child holds none of the server's secrets.
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        command = [sys.executable, "-m", "workers.inspecting", str(self.artifact_dir), str(self.max_memory_bytes)]
        command += [str(self.datasets_dir)] if self.datasets_dir is not None else []
        try:
            child = subprocess.run(
                command,
                input=spec.model_dump_json().encode(),
                capture_output=True,
                timeout=self.max_s,
                env=environment,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            message = f"Finding the groups took more than {self.max_s:.0f} s; the job's first build has more time."
            raise PruneloopError(message, code="inspect_timeout") from error
        try:
            answer = json.loads(child.stdout.splitlines()[-1])
        except (ValueError, IndexError) as error:
            message = f"The model could not be opened within {self.max_memory_bytes} bytes (exit {child.returncode})."
            raise PruneloopError(message, code="inspect_failed") from error
        if "problem" in answer:
            raise PruneloopError(str(answer["problem"]["message"]), code=str(answer["problem"]["code"]))
        return Network.model_validate(answer)


def main(artifact_dir: str, max_memory_bytes: str, datasets_dir: str | None = None) -> None:
    """The child."""
    resource.setrlimit(resource.RLIMIT_AS, (int(max_memory_bytes), int(max_memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from db.artifacts import FileArtifactStore
    from pruning.inspect import inspect_job

    try:
        spec = JobSpec.model_validate_json(sys.stdin.buffer.read())
        folder = Path(datasets_dir) if datasets_dir else None
        text = inspect_job(spec, FileArtifactStore(Path(artifact_dir)), folder).model_dump_json()
    except PruneloopError as error:
        text = json.dumps({"problem": {"message": error.message, "code": error.code}})
    except Exception as error:  # A boundary: a plug-in's model raises what it likes.
        message = f"The model could not be looked at: {type(error).__name__}: {error}"
        text = json.dumps({"problem": {"message": message, "code": "inspect_failed"}})
    sys.stdout.write(f"\n{text}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
