"""The agent's packages have wheels, at the pinned versions, for every CPython and machine a device may have."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hardware.emulated_board import REPOSITORY, agent_requirements, target_options

pytestmark = [pytest.mark.arm, pytest.mark.slow]

PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")  # glibc of Debian 10 and later


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_agent_resolves_to_pinned_wheels(python: str, machine: str, tmp_path: Path) -> None:
    constraints = REPOSITORY / "constraints.txt"
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed",
            "--target", str(tmp_path / "none"), "--report", str(report), "-c", str(constraints),
            *target_options(python, [f"{name}_{machine}" for name in PLATFORMS]), *agent_requirements(),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chosen = json.loads(report.read_text())["install"]
    versions = {_plain(one["metadata"]["name"]): one["metadata"]["version"] for one in chosen}
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints.read_text(), re.MULTILINE))
    known = {_plain(name): version for name, version in pinned.items()}
    assert versions == {name: known.get(name) for name in versions}
    assert {"onnxruntime", "celery", "numpy", "httpx"} <= set(versions)
    assert not set(versions) & {"torch", "sqlalchemy", "fastapi", "optuna", "psycopg"}
    wheels = [one["download_info"]["url"].rsplit("/", 1)[-1] for one in chosen]
    assert any(f"cp{python.replace('.', '')}" in name and machine in name for name in wheels)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
