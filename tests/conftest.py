"""Real servers for the tests: PostgreSQL and Valkey, started once a session, on unix sockets, stopped at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# numpy's small matrices only lose by threads that wait for one another, and a busy machine makes it ten times worse. The search
# worker does the same. Before anything imports numpy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from workers.servers.folders import ServerFolders, prepare_folders
from workers.servers.postgres import start_postgres, stop_postgres
from workers.servers.valkey import start_valkey, stop_valkey


@pytest.fixture(scope="session")
def server_folders() -> Iterator[ServerFolders]:
    root = Path(tempfile.mkdtemp(prefix="pl-"))
    root.chmod(0o755)  # as root, PostgreSQL's unprivileged user walks through it
    folders = prepare_folders(root)
    yield folders
    stop_valkey(folders)
    stop_postgres(folders)
    shutil.rmtree(folders.postgres_dir, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def database_url(server_folders: ServerFolders) -> str:
    """URL of an empty database on a real PostgreSQL; TEST_DATABASE_URL names another one to use."""
    return os.environ.get("TEST_DATABASE_URL") or start_postgres(server_folders)


@pytest.fixture(scope="session")
def broker_url(server_folders: ServerFolders) -> str:
    """URL of a real Valkey; TEST_BROKER_URL names another one to use."""
    return os.environ.get("TEST_BROKER_URL") or start_valkey(server_folders)
