"""The agent's extra alone makes a device: no torch, no SQL, small, and `agent doctor` answers."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 200 * 1000 * 1000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_agent_extra_alone_is_small_and_works(tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    before = _size(place)
    # pip must not count its own bytecode as the agent's; the agent's is counted after it ran, below.
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    install = ["install", "--quiet", "--no-compile", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[agent]"]
    subprocess.run(
        [str(python), "-m", "pip", *install],
        check=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=json"], capture_output=True, check=True, cwd=tmp_path
    )
    names = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert not names & {"torch", "sqlalchemy", "fastapi", "optuna", "psycopg", "alembic", "onnx"}
    doctor = subprocess.run(
        [str(place / "bin" / "pruneloop"), "agent", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "onnxruntime" in doctor.stdout
    assert _size(place) - before < MOST_BYTES


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
