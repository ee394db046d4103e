"""Which server the command line talks to: flags, then the environment, then the one that runs on this machine."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from client.api import PruneloopClient
from domain.errors import Unauthorized, Unavailable

DEFAULT_DATA_DIR = Path(".pruneloop")
DEFAULT_URL = "http://127.0.0.1:8420"


@dataclass(frozen=True)
class LocalServer:
    """What a running ``pruneloop up`` leaves in its data folder."""

    url: str
    token: str


def local_server(data_dir: Path) -> LocalServer | None:
    """Return the server that a data folder says is running; None if it says nothing. Whether it lives is not asked."""
    try:
        state = json.loads((data_dir / "run" / "server.json").read_text())
        token = (data_dir / "admin-token").read_text().strip()
        return LocalServer(url=str(state["url"]), token=token)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def connect(url: str | None = None, token: str | None = None, data_dir: Path = DEFAULT_DATA_DIR) -> PruneloopClient:
    """Return a client of the server that is meant.

    Raises:
        Unauthorized: ``no_token`` where there is neither a token nor a local data folder.
        Unavailable: ``no_server`` where a token is given, but no server is.
    """
    url = url or os.environ.get("PRUNELOOP_URL")
    token = token or os.environ.get("PRUNELOOP_TOKEN")
    local = local_server(data_dir)
    if url is None and local is not None:
        return PruneloopClient(local.url, token or local.token)
    if token is None and local is not None and url is not None and url.rstrip("/") == local.url.rstrip("/"):
        token = local.token
    if token is None:
        if url is None:
            raise Unavailable(
                f"No server is known: {data_dir}/run/server.json is not there. Start one with `pruneloop up`, "
                "or set PRUNELOOP_URL and PRUNELOOP_TOKEN.",
                code="no_server",
            )
        raise Unauthorized(
            "No token is known for that server; set PRUNELOOP_TOKEN to the text of its admin-token file.",
            code="no_token",
        )
    return PruneloopClient(url or DEFAULT_URL, token)
