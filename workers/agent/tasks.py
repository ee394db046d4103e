"""The agent as a Celery worker: one queue, one task, and a broker user that can touch this device's keys only.

A message is a wake and carries no work: losing or doubling it costs time, never a result. The task itself is a thin shell round
``session.AgentSession``; it runs in a spawned child, so that nothing of the worker's broker connection is shared with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import psutil
from celery import Celery, current_app, shared_task, signals
from celery.worker import state
from kombu.exceptions import OperationalError

from domain.logs import configure_logging
from domain.messages import BrokerAddress
from workers.agent.assembly import make_presence, make_session
from workers.agent.lifeline import leave_with_supervisor
from workers.agent.pulse import add_pulse
from workers.agent.session import AgentSession
from workers.agent.settings import STATE_DIR_VARIABLE, AgentSettings, Identity

log = logging.getLogger(__name__)

TASK = "measure.wake"
DRAIN_VARIABLE = "PRUNELOOP_DRAIN_FILE"
DRAIN_FILE = "drain"


def make_app(broker: BrokerAddress, *, task_time_limit_s: float = 3600.0) -> Celery:
    """Return the Celery app of one device.

    Source: settings measured on Celery 5.7 with Valkey 9; the reasons stand beside those that surprise.
    """
    app = Celery("pruneloop-agent", broker=broker.url, set_as_current=True)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,  # a wake is a hint; the reaper replaces a lost one
        task_default_queue=broker.queue,
        task_create_missing_queues=True,
        task_time_limit=task_time_limit_s,
        imports=["workers.agent.tasks"],
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=120,  # on a slow board, or under an emulator, a child takes long to import
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # the default gives up after 100
        worker_cancel_long_running_tasks_on_connection_loss=False,  # a broker that drops must not kill a measurement
        broker_transport_options={
            "visibility_timeout": 3600,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": broker.key_prefix,
        },
    )
    return app


@shared_task(name=TASK)  # type: ignore[untyped-decorator] # Celery carries no types
def wake() -> dict[str, int]:
    """Work for at most a minute; wake again if there is more."""
    report = _session().wake()
    if report.has_more:
        publish_wake(current_app)
    return {"measured": report.measured, "failed": report.failed}


def publish_wake(app: Any) -> None:
    """Put a wake on our own queue; a lost one is the reaper's to replace."""
    try:
        app.send_task(TASK, queue=app.conf.task_default_queue, ignore_result=True, retry=False)
    except (OperationalError, OSError) as error:
        log.warning("wake not published: %s", error)


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def begin_child(**_: object) -> None:
    """Import and connect before the first wake, then wake ourselves.

    The broker may have forgotten its queue, and the wake that a child before us died with is gone; nobody else wakes for a
    measurement that is still leased to this device.
    """
    _session()
    publish_wake(current_app)


def run_worker(settings: AgentSettings, identity: Identity) -> int:
    """Be the worker of a device until asked to leave; return the exit code."""
    leave_with_supervisor()
    _configure_logging(settings, identity)
    os.environ[STATE_DIR_VARIABLE] = str(settings.state_dir)  # for the spawned child
    drain_file = _arm_drain_file(settings)
    presence = make_presence(settings, identity)
    app = make_app(identity.broker, task_time_limit_s=settings.task_time_limit_s)
    add_pulse(app, settings.health_file)
    handlers = _connect(app, drain_file)
    presence.start()
    try:
        app.worker_main(
            [
                "--quiet", "worker", "--pool", "prefork", "--concurrency", "1", "--queues", identity.broker.queue,
                "--hostname", f"agent@{identity.device_id}", "--without-gossip", "--without-mingle",
                "--without-heartbeat", "--loglevel", settings.log_level,
            ]
        )  # fmt: skip
    finally:
        presence.stop()
        handlers.clear()
    return 0


def _arm_drain_file(settings: AgentSettings) -> Path:
    """Name a file that does not exist yet to the children to come, unless whoever started us has named one."""
    if settings.drain_file is not None:
        return settings.drain_file
    path = settings.state_dir / DRAIN_FILE
    path.unlink(missing_ok=True)  # of an earlier start
    os.environ[DRAIN_VARIABLE] = str(path)
    return path


def _connect(app: Celery, drain_file: Path) -> list[Callable[..., None]]:
    """Connect to the worker's life; the handlers live as long as the list does (Celery keeps weak references)."""

    def on_shutting_down(**_: object) -> None:
        drain_file.touch()
        if not state.reserved_requests:
            _leave_now()

    def keep_logging(**_: object) -> None:
        """Receives Celery's ``setup_logging``, and so keeps it from setting up its own."""

    signals.worker_shutting_down.connect(on_shutting_down)
    signals.setup_logging.connect(keep_logging)
    return [on_shutting_down, keep_logging]


def _leave_now() -> NoReturn:
    """End an idle worker. Celery's own way takes two seconds (a child of its pool sleeps for one before it goes).

    Nothing is lost: no task is in hand, and a wake that arrives in this moment may be lost as any wake may.
    """
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    logging.shutdown()
    os._exit(0)


@cache
def _session() -> AgentSession:
    """Return the session of this child process: its connections and its spare child live from wake to wake."""
    settings = AgentSettings()
    identity = Identity.load(settings.state_dir)
    _configure_logging(settings, identity)
    return make_session(settings, identity)


def _configure_logging(settings: AgentSettings, identity: Identity) -> None:
    configure_logging(settings.log_level, settings.log_format, "agent", always={"device_id": identity.device_id})
