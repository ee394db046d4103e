"""The one composition root: settings in, wired parts out. Entry points call it; nothing below imports it."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from db.artifacts import FileArtifactStore
from db.engine import make_engine, schema_is_current
from db.store import SqlJobStore
from domain import logs
from domain.errors import Unavailable
from domain.formats import FORMATS
from domain.ports import ArtifactStore
from domain.scores import METRICS, PLUGIN_GROUP
from settings import ApiSettings, BuildSettings, CoreSettings, SearchSettings
from workers.dispatch import CeleryLauncher

if TYPE_CHECKING:
    from fastapi import FastAPI

    from search.planning import Trace
    from search.service import Capabilities
    from workers.build import BuildWork
    from workers.search import SearchWork


ADMIN_SCOPES = frozenset({"admin"})


@dataclass(frozen=True)
class Server:
    """The parts every server process shares."""

    engine: Engine
    store: SqlJobStore
    artifacts: ArtifactStore
    launcher: CeleryLauncher

    def close(self) -> None:
        self.launcher.close()
        self.engine.dispose()


def connect(settings: CoreSettings, role: str = "") -> Server:
    """Wire the tables, the artifacts and the launcher.

    Args:
        settings: Where they are.
        role: Shown to who looks at the database's connections.

    Raises:
        Unavailable: ``stale_schema`` where the database is not at this version's schema.
    """
    engine = make_engine(settings.database_url.get_secret_value(), role=role)
    if not schema_is_current(engine):
        raise Unavailable(
            "The database's schema is not this version's; run `pruneloop db upgrade` and start again.",
            code="stale_schema",
        )
    return Server(
        engine=engine,
        store=SqlJobStore(engine),
        artifacts=make_artifacts(settings),
        launcher=CeleryLauncher(settings.broker_url.get_secret_value(), public_url=settings.broker_public_url),
    )


def make_artifacts(settings: CoreSettings) -> ArtifactStore:
    """Return the store of files: a folder, or a bucket with a folder of copies.

    Raises:
        Invalid: ``bad_artifact_url``.
        Unavailable: ``s3_missing`` where boto3 is not installed.
    """
    if settings.artifact_url is None:
        return FileArtifactStore(settings.artifact_dir)
    from db.s3 import Bucket, S3ArtifactStore

    bucket = Bucket.of(settings.artifact_url)
    return S3ArtifactStore(bucket, settings.artifact_dir, local_max_bytes=settings.artifact_cache_bytes)


def make_search_work(settings: SearchSettings) -> SearchWork:
    from search.loop import SearchLoop
    from search.options import Parts
    from workers.drain import is_draining
    from workers.names import take_name
    from workers.search import SearchWork

    server = connect(settings, "search")
    return SearchWork(
        store=server.store,
        loop=SearchLoop(
            server.store,
            server.launcher,
            server.artifacts,
            preset=settings.search_sampler,
            parts=Parts.without(settings.search_without),
        ),
        owner=take_name("search", settings.names_dir),
        is_draining=is_draining,
        slice_s=settings.slice_s,
    )


def make_build_work(settings: BuildSettings) -> BuildWork:
    from pruning.builder import TorchBuilder
    from pruning.checkpoint import Checkpoints
    from workers.agent import quiet
    from workers.build import BuildWork
    from workers.drain import is_draining
    from workers.names import take_name

    server = connect(settings, "build")
    return BuildWork(
        store=server.store,
        builder=TorchBuilder(
            server.artifacts,
            threads=settings.threads or default_threads(),
            checkpoints=Checkpoints(settings.artifact_dir / "checkpoints", every_s=settings.checkpoint_s),
            datasets_dir=settings.datasets_dir,
        ),
        launcher=server.launcher,
        hold=lambda: quiet.building(settings.quiet_file or quiet.default_path()),
        owner=take_name("build", settings.names_dir),
        is_draining=is_draining,
    )


def prepare_api(settings: ApiSettings) -> None:
    """Do once what several API processes on one port must not do at the same time.

    Raises:
        Unavailable: As ``connect``.
    """
    server = connect(settings)
    if settings.admin_token_file is not None:
        admit_admin(server.store, settings.admin_token_file)
    server.close()


def make_api(settings: ApiSettings) -> FastAPI:
    from api.app import create_app
    from api.deps import ApiDependencies
    from search.service import JobService
    from workers.tracing import configure_tracing

    configure_tracing("api", settings.otlp_endpoint)
    server = connect(settings, "api")
    if settings.admin_token_file is not None:
        admit_admin(server.store, settings.admin_token_file)
    service = JobService(
        server.store, server.artifacts, server.launcher, capabilities(), trace=inspector(settings, server.artifacts)
    )
    return create_app(
        ApiDependencies(
            store=server.store,
            artifacts=server.artifacts,
            launcher=server.launcher,
            service=service,
            max_upload_bytes=settings.max_upload_bytes,
            public_url=(settings.public_url or settings.url).rstrip("/"),
            allowed_hosts=settings.allowed_hosts,
            broker_is_reachable=server.launcher.is_reachable,
        )
    )


def inspector(settings: ApiSettings, artifacts: ArtifactStore) -> Trace:
    """Return what finds a model's groups: a child process where the builder's code is installed."""
    from search.planning import no_builder_here
    from workers.inspecting import ChildInspector

    if find_spec("torch") is None or find_spec("torch_pruning") is None:
        return no_builder_here
    return ChildInspector(settings.artifact_dir, settings.datasets_dir, fetch=artifacts.local_path)


def capabilities() -> Capabilities:
    """Return what jobs may ask for here. Names of models and data are checked where the builder's code is installed."""
    from search.service import Capabilities
    from workers.agent.runtimes.names import known_runtimes

    runtimes = known_runtimes()
    metrics = tuple(sorted({*METRICS, *(entry.name for entry in entry_points(group=PLUGIN_GROUP))}))
    exports = tuple(sorted({*FORMATS, *(entry.name for entry in entry_points(group="pruneloop.exporters"))}))
    try:
        from pruning.converters import why_missing
        from pruning.names import BUILTIN_DATASETS, BUILTIN_MODELS, known_names
    except ImportError:  # the server's image holds no builder: a build then names what it does not know
        return Capabilities(metrics=metrics, runtimes=runtimes, exports=exports)
    return Capabilities(
        runtimes=runtimes,
        exports=exports,
        metrics=metrics,
        models=known_names("pruneloop.models", BUILTIN_MODELS),
        datasets=known_names("pruneloop.datasets", BUILTIN_DATASETS),
        why_no_export=why_missing if find_spec("torch") is not None else lambda name: None,
    )


def admit_admin(store: SqlJobStore, path: Path) -> None:
    """Make the admin token at first start (mode 0600), and let the tables know it; a revoked one is made anew."""
    if not path.exists() or not store.set_token("admin", path.read_text().strip(), ADMIN_SCOPES):
        _write_admin_token(path)
        store.set_token("admin", path.read_text().strip(), ADMIN_SCOPES)


def _write_admin_token(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"pl_admin_{secrets.token_urlsafe(32)}\n")
    fresh.replace(path)


def default_threads() -> int:
    """All cores of a small host, all but one of a larger: builder and device of one host take turns, the rest needs little."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores < 4 else cores - 1


def configure_logging(settings: CoreSettings, role: str) -> None:
    logs.configure_logging(settings.log_level, settings.log_format, role)
