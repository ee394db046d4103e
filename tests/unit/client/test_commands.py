"""The command line as a person meets it: exit codes, messages, and what is written where."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from client.__main__ import make_app
from tests.docs.pages.command_line import commands_of

COMMANDS = (
    *("demo", "up", "serve", "worker", "db", "agent", "submit", "jobs", "watch"),
    *("front", "pause", "resume", "stop", "cancel", "clone", "download", "devices", "bench"),
)
ROOT = Path(__file__).parents[3]


def pruneloop(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "client", *arguments]
    known = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "100", **environment}
    return subprocess.run(command, cwd=cwd, env=known, capture_output=True, text=True, timeout=60, check=False)


def test_without_a_server_the_next_step_is_told(tmp_path: Path) -> None:
    done = pruneloop("jobs", cwd=tmp_path)
    assert done.returncode == 3
    assert "pruneloop up" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_stale_data_folder_of_a_dead_server_is_no_traceback(tmp_path: Path) -> None:
    run = tmp_path / ".pruneloop" / "run"
    run.mkdir(parents=True)
    (run / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "pid": 1}))
    (tmp_path / ".pruneloop" / "admin-token").write_text("secret\n")
    done = pruneloop("cancel", "job1", cwd=tmp_path)
    assert done.returncode == 3
    assert "http://127.0.0.1:9" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], ["watch"], ["jobs", "--state", "DONE"], ["worker", "paint"]])
def test_wrong_usage_is_2(tmp_path: Path, arguments: list[str]) -> None:
    assert pruneloop(*arguments, cwd=tmp_path).returncode == 2


def test_help_names_every_command_of_the_contract(tmp_path: Path) -> None:
    text = pruneloop("--help", cwd=tmp_path).stdout
    for name in COMMANDS:
        assert f" {name} " in text
    assert "Exit codes" in text


def test_the_client_loads_no_server(tmp_path: Path) -> None:
    code = (
        "import sys, client.__main__, client.api, client.demo; client.__main__.make_app();"
        "print([m for m in ('torch','optuna','sqlalchemy','fastapi','celery','numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_command_that_answers_has_json() -> None:
    """Those that go on until they are stopped have no answer."""
    goes_on = {"demo", "up", "serve", "worker", "agent run", "db upgrade"}
    commands = dict(commands_of("", typer.main.get_command(make_app())))
    silent = {
        name.strip() for name, command in commands.items() if not any("--json" in one.opts for one in command.params)
    }
    assert silent == goes_on


def test_the_release_is_told(tmp_path: Path) -> None:
    assert pruneloop("--version", cwd=tmp_path).stdout.startswith("pruneloop 0.")
