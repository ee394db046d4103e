"""The units are ones that systemd takes, hardened, and leave a drain the time it needs."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from workers.embedded import DRAIN_TIMEOUT_S

FOLDER = Path(__file__).parents[3] / "deploy" / "systemd"
UNITS = sorted(path.name for path in FOLDER.glob("*.service"))
HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
}


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / name).read_text())
    return parser


def test_there_is_one_for_a_device_and_one_for_a_server() -> None:
    assert UNITS == ["pruneloop-agent.service", "pruneloop.service"]


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_hardened_and_comes_back(name: str) -> None:
    service = unit(name)["Service"]
    assert {key: service.get(key) for key in HARDENED} == HARDENED
    assert service["User"] and service["User"] != "root"
    assert service["Restart"] == "always" and unit(name)["Unit"]["StartLimitIntervalSec"] == "0"
    assert "@system-service" in service["SystemCallFilter"]
    assert unit(name)["Install"]["WantedBy"] == "multi-user.target"


def test_a_stop_waits_for_a_drain() -> None:
    # `up` drains its workers, then the API, each for this long at the most, and stops two servers after that.
    assert float(unit("pruneloop.service")["Service"]["TimeoutStopSec"]) > 2 * DRAIN_TIMEOUT_S + 30
    # A wake ends within its minute and the measurement in hand with it: 60 s, and as long again.
    assert float(unit("pruneloop-agent.service")["Service"]["TimeoutStopSec"]) > 120
    for name in UNITS:
        assert unit(name)["Service"]["KillMode"] == "mixed"  # TERM to the main process only: it tells its children


@pytest.mark.parametrize("name", UNITS)
def test_what_a_unit_sets_is_a_setting(name: str) -> None:
    from settings import ApiSettings
    from workers.agent.settings import AgentSettings

    known = {f"PRUNELOOP_{field}".upper() for field in ApiSettings.model_fields}
    known |= {f"PRUNELOOP_AGENT_{field}".upper() for field in AgentSettings.model_fields}
    used = set(re.findall(r"^Environment=(\w+)=", (FOLDER / name).read_text(), re.MULTILINE))
    assert used and used <= known
    command = unit(name)["Service"]["ExecStart"]
    assert re.search(r"-m (workers\.agent run|client up)\b", command)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_itself_finds_nothing_to_say(name: str, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    # The commands and users of the unit exist where it is installed, not here.
    text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", (FOLDER / name).read_text())
    text = re.sub(r"^(User|Group)=.*$", r"\1=daemon", text, flags=re.MULTILINE)
    text = text.replace("WorkingDirectory=/opt/pruneloop", "WorkingDirectory=/")
    (tmp_path / name).write_text(text)
    done = subprocess.run(
        [tool, "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False, timeout=60
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if name in line]
    assert done.returncode == 0 and not said, done.stdout + done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_systemd_rates_the_exposure_as_low(name: str) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    done = subprocess.run(
        [tool, "security", "--no-pager", "--offline=true", "--threshold=30", str(FOLDER / name)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:] + done.stderr  # 3.0 of 10: "OK"
