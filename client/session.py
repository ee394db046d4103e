"""The Python client for people: a job as an object.

    from client import Client

    with Client() as pruneloop:                     # the server of this folder, the environment or the configuration file
        job = pruneloop.submit("job.yaml")
        for event in job.watch():
            print(event.type, event.data)
        front = job.front()
        print(front.to_dataframe())
        front.plot().figure.savefig("front.png")
        front.download("models")

``client.api.PruneloopClient`` has every call of the REST API, this has what a script or a notebook wants of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import JsonValue

from api.schemas.jobs import JobView
from client.api import PruneloopClient
from client.callbacks import JobCallback, log_job
from client.connection import connect
from client.files import kind_of, read_job, upload, upload_folder, with_uploads
from client.follow import follow
from client.front import MeasuredFront
from client.in_process import Application, AppTransport
from client.render import make_console
from domain.artifact import ArtifactKind, ArtifactRef
from domain.device import Device
from domain.errors import Invalid
from domain.job import Job, JobSpec, JobState
from domain.plan import JobPlan
from domain.ports import Event
from domain.trial import Trial

IN_PROCESS_URL = "http://localhost"


class Client:
    """A server, as scripts and notebooks use it.

    Args:
        url: Where it is; None: ``PRUNELOOP_URL``, else the configuration file, else the one ``pruneloop up`` runs in ``data_dir``.
        token: Bearer token; None: found the same way.
        data_dir: Data folder of a server on this machine; None: ``.pruneloop`` here.
        app: An ASGI application in this process instead of a URL; needs ``token``.

    Raises:
        Unavailable: ``no_server`` where none is known.
        Unauthorized: ``no_token`` where a server is known and no token.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        data_dir: Path | str | None = None,
        app: Application | None = None,
    ) -> None:
        if app is not None:
            if not token:
                raise Invalid("An application in this process needs `token`, as a server does.", code="no_token")
            self.api = PruneloopClient(url or IN_PROCESS_URL, token, transport=AppTransport(app))
        else:
            self.api = connect(url, token, Path(data_dir) if data_dir is not None else None)

    def submit(
        self, spec: JobSpec | Mapping[str, Any] | Path | str, *, idempotency_key: str | None = None
    ) -> JobHandle:
        """Submit a job: a spec, a mapping, or the path of a YAML or JSON file. Files it names by their path are uploaded first.

        Raises:
            Invalid: With every failing field named, or ``no_such_file``.
        """
        return JobHandle(self.api, self.api.submit(self._content(spec), idempotency_key=idempotency_key).id)

    def plan(self, spec: JobSpec | Mapping[str, Any] | Path | str) -> JobPlan:
        """Return what a job would do, its groups, devices and cost; nothing is submitted, but files it names are uploaded."""
        return self.api.plan(self._content(spec))

    def clone(self, job: JobHandle | str, **changes: Any) -> JobHandle:
        """Submit the same job again; each argument is a top-level field that differs: ``clone(job, seed=1)``."""
        return JobHandle(self.api, self.api.clone(job if isinstance(job, str) else job.id, changes).id)

    def job(self, job_id: str) -> JobHandle:
        """Return a job that was submitted before. Raises NotFound."""
        return JobHandle(self.api, self.api.job(job_id).id)

    def jobs(
        self, *, states: Sequence[JobState] = (), labels: Sequence[str] = (), limit: int | None = None
    ) -> list[Job]:
        """Return jobs, newest first; ``labels`` are ``key=value``, or ``key`` for any value."""
        return self.api.jobs(states=states, labels=labels, limit=limit)

    def devices(self) -> list[Device]:
        return self.api.devices()

    def upload(self, path: Path | str, kind: ArtifactKind | str | None = None) -> ArtifactRef:
        """Upload weights (.safetensors), data (.npz, .csv, .parquet, .zip, a folder) or a model (.onnx); its ``digest`` goes
        into a job.

        Raises:
            Invalid: ``unknown_kind`` where the name does not say what it is, else why the server refuses the file.
        """
        file = Path(path)
        if file.is_dir():
            return upload_folder(self.api, file)
        return self.api.upload_artifact(file, kind or kind_of(file))

    def close(self) -> None:
        self.api.close()

    def _content(self, spec: JobSpec | Mapping[str, Any] | Path | str) -> JobSpec | Mapping[str, Any] | bytes:
        if isinstance(spec, JobSpec):
            return spec
        if not isinstance(spec, Path | str):
            return with_uploads(spec, Path(), lambda path, kind: upload(self.api, path, kind).digest) or spec
        try:
            return read_job(Path(spec).read_bytes(), Path(spec).parent, self.api)
        except OSError as error:
            raise Invalid(f"{spec} cannot be read ({error.strerror}).", code="no_such_file") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class JobHandle:
    """A job on its server; every property asks anew, an unchanged job costs the server no body."""

    def __init__(self, api: PruneloopClient, job_id: str) -> None:
        self._api = api
        self.id = job_id

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    @property
    def view(self) -> JobView:
        """The job and how far it is."""
        return self._api.job(self.id)

    @property
    def state(self) -> JobState:
        return self.view.state

    @property
    def report(self) -> dict[str, JsonValue]:
        """What the job says of itself; see ``pruneloop report``."""
        return self.view.report

    def watch(self, *, after: int = 0, timeout_s: float | None = None) -> Iterator[Event]:
        """Yield what happens until the job is over. Raises Unavailable ``still_running`` where time is up."""
        return self._api.watch(self.id, after=after, timeout_s=timeout_s)

    def wait(self, *, timeout_s: float | None = None, show: bool = False) -> JobView:
        """Return the job once it is over; ``show`` writes its progress meanwhile. Raises Unavailable ``still_running``."""
        if show:
            return follow(self._api, self.id, make_console(), timeout_s=timeout_s)
        return self._api.wait(self.id, timeout_s=timeout_s)

    def log_to(self, *callbacks: JobCallback) -> JobView:
        """Tell TensorBoard, MLflow or Weights & Biases (``client.callbacks``) of every trial until the job is over; return it."""
        return log_job(self._api, self.id, callbacks)

    def trials(self) -> list[Trial]:
        return self._api.trials(self.id)

    def front(self, target: int = 0) -> MeasuredFront:
        """Return what was measured on a target so far. Raises NotFound ``unknown_target``."""
        return MeasuredFront(self._api, self._api.front(self.id, target))

    def download(
        self, folder: Path | str, *, target: int | None = None, trial: int | None = None, format: str | None = None
    ) -> list[Path]:
        """Bring the fronts' files here, each verified against its digest; ``target`` None: of all targets."""
        targets = range(len(self.view.spec.targets)) if target is None else [target]
        return [path for one in targets for path in self.front(one).download(folder, trial=trial, format=format)]

    def pause(self) -> Job:
        return self._api.pause(self.id)

    def resume(self) -> Job:
        return self._api.resume(self.id)

    def stop(self) -> Job:
        """Finish running trials and keep the front."""
        return self._api.stop(self.id)

    def cancel(self) -> Job:
        """Kill running work."""
        return self._api.cancel(self.id)
