"""Claim: an idle Pruneloop costs next to nothing: under 2 % of one core in all, and it is ready within eight seconds.

Starts `pruneloop up` on a folder of its own, twice (the first start also makes the database), waits until its device is online and
the processes have settled, then adds up for a minute what all of them, the servers included, spent, and what memory they hold.

    python -m benchmarks.idle [--for-s 60] [--report docs/benchmarks/idle.md]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from client.api import PruneloopClient
from workers.servers.folders import prepare_folders
from workers.servers.postgres import find_postgres, stop_postgres
from workers.servers.valkey import find_valkey, stop_valkey

SETTLE_S = 60.0  # the device checks its golden model first
START_TIMEOUT_S = 120.0
MB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Part:
    """Processes of one role: seconds of CPU at the last look, and memory (a page shared by n processes counts 1/n)."""

    name: str
    processes: int = 0
    cpu_s: float = 0.0
    pss_bytes: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for-s", type=float, default=60.0, help="How long to watch.")
    parser.add_argument("--report", type=Path, default=None, help="Write the table as markdown.")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pl-idle-"))
    folder.chmod(0o755)
    try:
        text = run(folder, given.for_s)
    finally:
        folders = prepare_folders(folder)
        stop_valkey(folders)
        stop_postgres(folders)
        shutil.rmtree(folders.postgres_dir, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
    print(text, end="")
    if given.report is not None:
        given.report.write_text(text)


def run(folder: Path, for_s: float) -> str:
    first_s, process = start(folder)
    stop(process)
    again_s, process = start(folder)
    try:
        time.sleep(SETTLE_S)
        before, begin = look(folder, process.pid), time.monotonic()
        time.sleep(for_s)
        after, spent = look(folder, process.pid), time.monotonic() - begin
    finally:
        stop(process)
    return render(first_s, again_s, spent, before, after)


def start(folder: Path) -> tuple[float, subprocess.Popen[bytes]]:
    """Start everything; return the seconds until its device was online, as a user would see it."""
    begin = time.monotonic()
    with (folder / "up.log").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "client", "up", "--data-dir", str(folder), "--port", "0"],
            cwd=ROOT, stdout=out, stderr=out, start_new_session=True,
            env={key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")},
        )  # fmt: skip
    state = folder / "run" / "server.json"
    while time.monotonic() - begin < START_TIMEOUT_S:
        assert process.poll() is None, (folder / "up.log").read_text()[-2000:]
        try:
            said = json.loads(state.read_text())
            if said["pid"] == process.pid:
                with PruneloopClient(said["url"], (folder / "admin-token").read_text().strip()) as client:
                    if client.devices():
                        return time.monotonic() - begin, process
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    raise SystemExit(f"not ready: {(folder / 'up.log').read_text()[-2000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(90)


def look(folder: Path, supervisor: int) -> dict[str, Part]:
    """Return what every part has spent and holds, by name."""
    folders = prepare_folders(folder)
    postgres, valkey = find_postgres(folders), find_valkey(folders)
    assert postgres is not None and valkey is not None
    heads = {"supervisor": psutil.Process(supervisor), "postgresql": postgres, "valkey": valkey}
    for path in sorted(folders.run_dir.glob("*.pid")):
        if path.stem != "valkey":
            heads[path.stem] = psutil.Process(int(json.loads(path.read_text())["pid"]))
    pids = {head.pid for head in heads.values()}
    return {name: _part(name, head, pids - {head.pid}) for name, head in heads.items()}


def _part(name: str, head: psutil.Process, others: set[int]) -> Part:
    part = Part(name)
    waiting = [head]
    while waiting:
        process = waiting.pop()
        times = process.cpu_times()
        part.processes += 1
        # With those of its children that have ended: what one spends is in the account of somebody who lives, and in one only.
        part.cpu_s += times.user + times.system + times.children_user + times.children_system
        part.pss_bytes += process.memory_full_info().pss
        waiting += [child for child in process.children() if child.pid not in others]
    return part


def render(first_s: float, again_s: float, spent: float, before: dict[str, Part], after: dict[str, Part]) -> str:
    cpu = {name: 100 * (after[name].cpu_s - before[name].cpu_s) / spent for name in after if name in before}
    lines = [
        "# What an idle Pruneloop costs",
        "",
        "Written by `python -m benchmarks.idle --report docs/benchmarks/idle.md`.",
        "",
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}. `pruneloop up`, one local device, nothing to do; watched for {spent:.0f} s.",
        "",
        "| part | processes | CPU, % of one core | memory, MB (PSS) |",
        "|---|---|---|---|",
        *(
            f"| {name} | {part.processes} | {cpu[name]:.2f} | {part.pss_bytes / MB:.0f} |"
            for name, part in sorted(after.items(), key=lambda item: -cpu[item[0]])
        ),
        f"| **all** | {sum(part.processes for part in after.values())} | **{sum(cpu.values()):.2f}** "
        f"| {sum(part.pss_bytes for part in after.values()) / MB:.0f} |",
        "",
        f"From the command to the API ready and the device joined: {again_s:.1f} s; the first time, which makes the "
        f"database and joins the device, {first_s:.1f} s.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
