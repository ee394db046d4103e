"""Entry point of the API: ``uvicorn api.main:app`` or ``pruneloop serve``."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

import bootstrap
from domain.errors import PruneloopError
from settings import ApiSettings
from workers.drain import die_with_parent


def serve(host: str | None = None, port: int | None = None) -> int:
    """Run the API until it is asked to leave; return the exit code."""
    die_with_parent()
    overrides: dict[str, Any] = {}
    if host is not None:
        overrides["host"] = host
    if port is not None:
        overrides["port"] = port
    settings = ApiSettings(**overrides)
    bootstrap.configure_logging(settings.log_level)
    uvicorn.run(
        bootstrap.make_api(settings),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    return 0


def __getattr__(name: str) -> Any:
    # `uvicorn api.main:app` asks for the app; merely importing this module must not connect to anything.
    if name == "app":
        settings = ApiSettings()
        bootstrap.configure_logging(settings.log_level)
        return bootstrap.make_api(settings)
    raise AttributeError(name)


if __name__ == "__main__":
    try:
        sys.exit(serve())
    except PruneloopError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        sys.exit(1)
