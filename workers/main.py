"""Entry points of the server's workers: ``python -m workers.main search | build | reaper``, and the database upgrade."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from celery import Celery, signals
from kombu.exceptions import OperationalError

import bootstrap
from domain.errors import PruneloopError
from settings import BuildSettings, CoreSettings, ReaperSettings, SearchSettings
from workers.agent.pulse import add_pulse
from workers.celery import make_app
from workers.drain import arm_drain_file, die_with_parent, touch_on_shutdown
from workers.tracing import configure_tracing

if TYPE_CHECKING:
    from workers.build import BuildWork
    from workers.search import SearchWork

log = logging.getLogger(__name__)

ROLES = ("search", "build", "reaper")
IMPORTED_FIRST = {
    "search": ("search.loop",),
    "build": ("pruning.builder", "torch._dynamo"),  # the second by the first step of any optimizer: over a second
}
SPENT = 75  # EX_TEMPFAIL: another process may do better
_work: dict[str, SearchWork | BuildWork] = {}  # what the one task of this child works with, made once


def run_worker(role: str) -> int:
    """Run one role until it is asked to leave; return the exit code."""
    die_with_parent()
    # The search's matrices are small: threads of the linear algebra would wait for one another, and take cores from a build. Before
    # anything imports numpy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if role == "reaper":
        return _run_reaper()
    settings = SearchSettings() if role == "search" else BuildSettings()
    bootstrap.configure_logging(settings, role)
    bootstrap.connect(settings).close()  # refuse at once, in words, what would fail in a child later
    # Before the fork: a child that dies is replaced without seconds of importing. Importing torch does not start CUDA.
    for module in IMPORTED_FIRST[role]:
        import_module(module)
    drain = arm_drain_file()
    handler = touch_on_shutdown(drain)
    signals.worker_shutting_down.connect(handler)

    def warm_up(**_: object) -> None:
        # Connect before the first wake, in the child: neither a connection nor CUDA may cross a fork.
        _child_work(role)
        # The wake that the child before us died with is gone, and nobody else wakes for work that is still leased to our name.
        _wake_own_queue(role)

    signals.worker_process_init.connect(warm_up)
    signals.setup_logging.connect(keep_logging)
    try:
        app = search_app() if role == "search" else build_app()
        add_pulse(app, settings.health_file)
        app.worker_main(
            [
                "--quiet", "worker", "--pool", "prefork", "--concurrency", "1", "--queues", role, "--hostname",
                f"{role}@%h-{os.getpid()}", "--without-gossip", "--without-mingle", "--loglevel", settings.log_level,
            ]
        )  # fmt: skip
    finally:
        shutil.rmtree(drain.parent, ignore_errors=True)
    return 0


def keep_logging(**_: object) -> None:
    """Receives Celery's ``setup_logging``, and so keeps it from setting up its own."""


def search_app() -> Celery:
    app = make_app(SearchSettings().broker_url.get_secret_value(), start_method="fork")
    app.task(name="search.wake")(search_wake)
    return app


def build_app() -> Celery:
    app = make_app(BuildSettings().broker_url.get_secret_value(), start_method="fork")
    app.task(name="build.wake")(build_wake)
    return app


def _wake_own_queue(role: str) -> None:
    app = search_app() if role == "search" else build_app()
    try:
        app.send_task(f"{role}.wake", queue=role, ignore_result=True, retry=False)
    except (OperationalError, OSError) as error:
        log.warning("wake not published, the reaper will: %s", error)
    finally:
        app.close()


def search_wake() -> None:
    _child_work("search").run()


def build_wake() -> None:
    from workers.build import BuildWork

    work = _child_work("build")
    work.run()
    if isinstance(work, BuildWork) and work.is_spent:
        log.warning("this process cannot build any more; another takes its place")
        os._exit(SPENT)  # the pool starts another child, which wakes its own queue


def _child_work(role: str) -> SearchWork | BuildWork:
    if role not in _work:
        settings = SearchSettings() if role == "search" else BuildSettings()
        configure_tracing(role, settings.otlp_endpoint)  # in the child: its thread that sends would not outlive a fork
        if isinstance(settings, SearchSettings):
            _work[role] = bootstrap.make_search_work(settings)
        else:
            _work[role] = bootstrap.make_build_work(settings)
    return _work[role]


def upgrade_database() -> int:
    """Bring the schema to this version."""
    from db.engine import upgrade

    upgrade(CoreSettings().database_url.get_secret_value())
    return 0


def _run_reaper() -> int:
    from domain.webhook import secret_of
    from workers.reaper import Reaper
    from workers.retention import DAY_S, collect
    from workers.webhooks import TIMEOUT_S, Hook, Webhooks

    settings = ReaperSettings()
    bootstrap.configure_logging(settings, "reaper")
    server = bootstrap.connect(settings, "reaper")
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    older_than_s = settings.retention_days * DAY_S
    reaper = Reaper(server.store, server.launcher, settings.interval_s, settings.audit_days, settings.names_dir)
    reaper.health_file = settings.health_file
    if older_than_s:
        reaper.collect = partial(collect, server.store, server.artifacts, older_than_s=older_than_s)
    hooks = {
        name: Hook(hook.url, secret_of(hook.secret.get_secret_value())) for name, hook in settings.webhooks.items()
    }
    # A thread of its own: a receiver that hangs must not hold back what the reaper puts right.
    telling = threading.Thread(target=Webhooks(server.store, hooks).run, args=(stop,), name="webhooks")
    telling.start()
    reaper.run(stop)
    telling.join(TIMEOUT_S + 1)
    server.close()
    return 0


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in ROLES:
        sys.stderr.write(f"usage: python -m workers.main {' | '.join(ROLES)}\n")
        return 2
    try:
        return run_worker(sys.argv[1])
    except PruneloopError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
