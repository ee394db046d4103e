"""The embedded servers start, keep what was written, and are found again by a process that did not start them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest
import redis

from workers.servers import postgres, valkey
from workers.servers.folders import prepare_folders
from workers.servers.processes import find_process, write_pid_file


def test_servers_keep_their_data_over_a_restart_and_are_reattached(tmp_path: Path) -> None:
    root = Path(tempfile.mkdtemp(prefix="pl-"))
    root.chmod(0o755)
    folders = prepare_folders(root)
    try:
        url = postgres.start_postgres(folders).replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept (x int)")
            connection.execute("INSERT INTO kept VALUES (7)")
        first = postgres.find_postgres(folders)
        assert first is not None
        assert postgres.start_postgres(folders).replace("+psycopg", "") == url
        again = postgres.find_postgres(folders)
        assert again is not None and again.pid == first.pid, "a running server was started twice"

        valkey.start_valkey(folders)
        client = redis.Redis(unix_socket_path=str(folders.valkey_socket))
        client.set("kept", "7")
        first_valkey = valkey.find_valkey(folders)
        valkey.start_valkey(folders)
        second_valkey = valkey.find_valkey(folders)
        assert first_valkey and second_valkey and first_valkey.pid == second_valkey.pid

        postgres.stop_postgres(folders)
        valkey.stop_valkey(folders)
        assert postgres.find_postgres(folders) is None
        assert valkey.find_valkey(folders) is None

        with psycopg.connect(postgres.start_postgres(folders).replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT x FROM kept").fetchone() == (7,)
        valkey.start_valkey(folders)
        assert client.get("kept") == b"7"
        client.close()
    finally:
        postgres.stop_postgres(folders)
        valkey.stop_valkey(folders)


def test_a_data_folder_below_a_closed_home_with_a_long_path_works_too(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    deep = closed / ("x" * 80)
    deep.mkdir(parents=True)
    closed.chmod(0o700)
    folders = prepare_folders(deep)
    try:
        url = postgres.start_postgres(folders).replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        valkey.start_valkey(folders)
    finally:
        postgres.stop_postgres(folders)
        valkey.stop_valkey(folders)
        shutil.rmtree(folders.postgres_dir.parent if folders.postgres_dir.parent != deep else folders.postgres_dir)


def test_a_pid_file_never_trusts_a_reused_pid(tmp_path: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pid_file = tmp_path / "x.pid"
    try:
        write_pid_file(pid_file, sleeper.pid)
        found = find_process(pid_file)
        assert found is not None and found.pid == sleeper.pid
        noted = pid_file.read_text()
        pid_file.write_text(noted.replace('"started": ', '"started": 1'))
        assert find_process(pid_file) is None
    finally:
        os.kill(sleeper.pid, signal.SIGKILL)
        sleeper.wait()
    pid_file.write_text(noted)
    assert find_process(pid_file) is None


@pytest.mark.parametrize("text", ["", "{", '{"pid": "x"}', '{"pid": 999999999, "started": 1}'])
def test_a_broken_pid_file_is_no_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pid").write_text(text)
    assert find_process(tmp_path / "x.pid") is None
