"""schemathesis over the whole API, with the token of every scope in turn and with none: ``python -m tests.whole_api``.

A real PostgreSQL is started for it. Prints what each token made of it, and how many requests were generated in all; the exit code
is 1 where a check failed, or where there were fewer than asked for.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.whole_api.server import Everybody, whole_api
from workers.servers.folders import prepare_folders
from workers.servers.postgres import start_postgres, stop_postgres

CONFIG = Path(__file__).with_name("schemathesis.toml")
NOBODY = "nobody"
CALLERS = ("admin", "submit", "read", "device", NOBODY)


def ask_everything(
    everybody: Everybody,
    caller: str,
    *,
    examples: int,
    seed: int,
    phases: str = "examples,coverage,fuzzing,stateful",
    max_time_s: int | None = None,
) -> tuple[int, int, str]:
    """Run schemathesis with one token; return (requests generated, exit code, its output)."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(CONFIG), "run",
        f"{everybody.url}/openapi.json", "--checks", "all", "--phases", phases,
        "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure",
    ]  # fmt: skip
    if max_time_s is not None:
        command += ["--max-time", str(max_time_s)]
    token = everybody.tokens.get(caller, "nobody-knows-this")
    done = subprocess.run(
        command,
        env={**os.environ, "PRUNELOOP_TEST_TOKEN": token, "NO_PROXY": "127.0.0.1", "COLUMNS": "160"},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"(\d+) generated", done.stdout)
    return int(found[1]) if found else 0, done.returncode, done.stdout + done.stderr


def main() -> int:
    """Ask with everybody's token; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=5, help="generated cases an operation and token, at most")
    parser.add_argument("--requests", type=int, default=10_000, help="fewer than these in all are a failure")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--caller", action="append", choices=CALLERS)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="pl-"))
    root.chmod(0o755)  # as root, PostgreSQL's unprivileged user walks through it
    folders = prepare_folders(root)
    total = failed = 0
    try:
        with whole_api(start_postgres(folders), root / "artifacts") as everybody:
            for caller in options.caller or CALLERS:
                began = time.monotonic()
                count, code, text = ask_everything(everybody, caller, examples=options.examples, seed=options.seed)
                total, failed = total + count, failed + bool(code)
                took_s = time.monotonic() - began
                print(f"{caller:8} {count:7} requests {took_s:7.0f} s  {'FAILED' if code else 'ok'}", flush=True)
                if code:
                    print(text)
    finally:
        stop_postgres(folders)
        shutil.rmtree(root, ignore_errors=True)
    print(f"{total} generated requests, {failed} callers with a failing check")
    return 1 if failed or (total < options.requests and not options.caller) else 0


if __name__ == "__main__":
    sys.exit(main())
