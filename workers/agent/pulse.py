"""A worker's pulse: a file it touches while its event loop turns and it hears the broker.

Whoever watches (a container's health check, a monitor) looks at the file's age: that costs nothing, where `celery inspect ping`
starts a Python that takes a second of the very cores a measurement needs.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps

log = logging.getLogger(__name__)

PULSE_S = 5.0


def touch(path: Path) -> None:
    """Say that all is well now. A disk that is full is logged: it must not end the worker."""
    try:
        path.touch()
    except OSError as error:
        log.warning("the pulse is not written: %s", error)


def add_pulse(app: Celery, path: Path | None) -> None:
    """Have a worker of this app touch a file every few seconds while it consumes; None: it does not."""
    if path is None:
        return
    file = path

    class Pulse(bootsteps.StartStopStep):  # type: ignore[misc] # Celery carries no types
        # Begins once tasks are consumed and ends with the connection: a worker that lost its broker has no pulse.
        requires = {"celery.worker.consumer.tasks:Tasks"}  # noqa: RUF012 - as Celery declares it

        def start(self, consumer: Any) -> None:
            touch(file)
            self.timer = consumer.timer.call_repeatedly(PULSE_S, touch, (file,))

        def stop(self, consumer: Any) -> None:
            if (timer := getattr(self, "timer", None)) is not None:
                timer.cancel()

    app.steps["consumer"].add(Pulse)
