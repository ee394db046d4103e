"""Which server is talked to: what was given, then the environment, the configuration file, the one on this machine."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from client.api import PruneloopClient
from client.config import config_path, load_config
from client.errors import CA_FILE_VARIABLE
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


def token_of_environment() -> str | None:
    """Return PRUNELOOP_TOKEN, or what stands in the file that PRUNELOOP_TOKEN_FILE names. Raises Unauthorized ``no_token``."""
    token = os.environ.get("PRUNELOOP_TOKEN")
    path = os.environ.get("PRUNELOOP_TOKEN_FILE")
    if token or not path:
        return token
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise Unauthorized(
            f"PRUNELOOP_TOKEN_FILE names {path}, which cannot be read ({error.strerror}).", code="no_token"
        ) from error


def connect(url: str | None = None, token: str | None = None, data_dir: Path | None = None) -> PruneloopClient:
    """Return a client of the server that is meant.

    Raises:
        Invalid: ``bad_config`` where the configuration file is wrong.
        Unauthorized: ``no_token`` where there is neither a token nor a local data folder.
        Unavailable: ``no_server`` where a token is given, but no server is.
    """
    config = load_config()
    # A folder that is named means the server in it, whatever the file says of another.
    named = data_dir is not None
    folder = data_dir or Path(config.data_dir or DEFAULT_DATA_DIR).expanduser()
    url = url or os.environ.get("PRUNELOOP_URL") or (None if named else config.url)
    token = token or token_of_environment() or (None if named else config.read_token())
    named_ca = os.environ.get(CA_FILE_VARIABLE) or config.ca_file
    ca_file = Path(named_ca).expanduser() if named_ca else None
    local = local_server(folder)
    if url is None and local is not None:
        return PruneloopClient(local.url, token or local.token, ca_file=ca_file)
    if token is None and local is not None and url is not None and url.rstrip("/") == local.url.rstrip("/"):
        token = local.token
    if token is None:
        if url is None:
            raise Unavailable(
                f"No server is known: {folder}/run/server.json is not there. Start one with `pruneloop up`, "
                f"or set PRUNELOOP_URL and PRUNELOOP_TOKEN (or `url` and `token_file` in {config_path()}).",
                code="no_server",
            )
        raise Unauthorized(
            f"No token is known for {url}; set PRUNELOOP_TOKEN to the text of its admin-token file, "
            f"or name that file as `token_file` in {config_path()}.",
            code="no_token",
        )
    return PruneloopClient(url or DEFAULT_URL, token, ca_file=ca_file)
