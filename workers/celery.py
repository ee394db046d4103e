"""The one place on the server that makes a Celery app. A message is a wake: it carries no work and may be lost or doubled.

Source: the settings were measured by the team on Celery 5.7 with Valkey 9: JSON only, early acknowledgement (a wake is a hint
and the reaper replaces a lost one), one task at a time, and a broker that goes away never kills what runs.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

CORE_PREFIX = "prune:core:"


def make_app(broker_url: str, *, key_prefix: str = CORE_PREFIX, start_method: str = "fork") -> Celery:
    """Return a Celery app on a broker, confined to keys that begin with ``key_prefix``."""
    app = Celery("pruneloop", broker=broker_url, set_as_current=False)
    app.conf.update(common_settings(key_prefix), worker_pool_start_method=start_method)
    return app


def common_settings(key_prefix: str) -> dict[str, Any]:
    return {
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": False,
        "task_create_missing_queues": True,
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_proc_alive_timeout": 120,  # a child imports torch before it says that it is up
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_transport_options": {
            "visibility_timeout": 3600,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": key_prefix,
        },
    }


def device_prefix(device_id: str) -> str:
    return f"prune:{device_id}:"


def device_queue(device_id: str) -> str:
    return f"device.{device_id}"
