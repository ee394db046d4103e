"""Entry point of the API: ``uvicorn api.main:app`` or ``pruneloop serve``."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

import bootstrap
from domain.errors import PruneloopError
from settings import PREFIX, ApiSettings
from workers.drain import die_with_parent

GC_THRESHOLD = 20_000  # objects made since the last round


def serve(
    host: str | None = None, port: int | None = None, tls_cert: Path | None = None, tls_key: Path | None = None
) -> int:
    """Run the API until it is asked to leave; return the exit code. What is given wins over the environment."""
    die_with_parent()
    given = {"host": host, "port": port, "tls_cert_file": tls_cert, "tls_key_file": tls_key}
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = ApiSettings(**overrides)
    bootstrap.configure_logging(settings, "api")
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "log_level": settings.log_level.lower(),
        "log_config": None,  # its loggers write as all others do
        "access_log": False,
        "timeout_graceful_shutdown": 5,
        "ssl_certfile": settings.tls_cert_file,
        "ssl_keyfile": settings.tls_key_file,
    }
    if settings.api_workers == 1:
        uvicorn.run(_settled(bootstrap.make_api(settings)), **options)
        return 0
    bootstrap.prepare_api(settings)  # refuse at once, in words, what each of the processes would stumble over
    os.environ.update({f"{PREFIX}{name.upper()}": str(value) for name, value in overrides.items()})
    uvicorn.run("api.main:make_app", factory=True, workers=settings.api_workers, **options)
    return 0


def make_app() -> FastAPI:
    """Return the application as the environment describes it: what each of several processes serves."""
    settings = ApiSettings()
    bootstrap.configure_logging(settings, "api")
    return _settled(bootstrap.make_api(settings))


def _settled(app: FastAPI) -> FastAPI:
    """Take what is loaded by now out of the garbage collector's rounds.

    It lives as long as the process, and an answer of many rows makes enough objects for a round: a third of a front's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    return app


def __getattr__(name: str) -> Any:
    # `uvicorn api.main:app` asks for the app; merely importing this module must not connect to anything.
    if name == "app":
        return make_app()
    raise AttributeError(name)


if __name__ == "__main__":
    try:
        sys.exit(serve())
    except PruneloopError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        sys.exit(1)
