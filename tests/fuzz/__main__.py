"""Fuzz the parsers, guided by coverage: ``python -m tests.fuzz --seconds 3600 [--target NAME]...``.

Each target runs in a process of its own for its share of the time; what reaches new code is kept in ``tests/fuzz/corpus/NAME`` and
replayed by the tests. A crash stops its target, is written to ``tests/fuzz/crashes`` and makes the exit code 1.

Source: libFuzzer through Atheris, github.com/google/atheris.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
CORPUS, CRASHES = HERE / "corpus", HERE / "crashes"
MAX_LENGTH = 4096
RSS_LIMIT_MB = 4096
ONE_INPUT_S = 25
# Whose branches guide it; what is written in C, protobuf and expat, is seen by its crashes only.
INSTRUMENTED = ["api", "client", "domain", "db", "json", "yaml", "zipfile", "ast", "pruning.from_onnx"]


def fuzz_one(name: str, folder: Path, seconds: float, merge_into: Path | None, raw: list[str]) -> int:
    """Run one target in this process, or merge its inputs; never returns but by libFuzzer's exit."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import TARGETS, run

    target = TARGETS[name]
    CRASHES.mkdir(exist_ok=True)
    common = [
        f"-max_len={MAX_LENGTH}", f"-timeout={ONE_INPUT_S}", f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-artifact_prefix={CRASHES}/{name}-", "-verbosity=0",
    ]  # fmt: skip
    if raw:
        arguments = [sys.argv[0], *raw]
    elif merge_into is not None:
        # To merge, libFuzzer starts itself again: by its first argument, which must be a program.
        again = merge_into.parent / "again"
        again.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz --child {name} {folder} --raw "$@"\n')
        again.chmod(0o755)
        arguments = [str(again), "-merge=1", str(merge_into), str(folder), *common]
    else:
        arguments = [sys.argv[0], str(folder), f"-max_total_time={int(seconds)}", "-print_final_stats=1", *common]

    def one(data: bytes) -> None:
        run(target, data)

    atheris.Setup(arguments, one)
    atheris.Fuzz()
    return 0


def main() -> int:
    """Fuzz the targets one after another; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="for all targets together")
    parser.add_argument("--target", action="append", help="only this one; may be given again")
    parser.add_argument("--child", nargs=2, metavar=("TARGET", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--merge-into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--raw", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return fuzz_one(
            options.child[0], Path(options.child[1]), options.seconds, options.merge_into, options.raw or []
        )

    from tests.fuzz.targets import TARGETS, seeds

    names = options.target or sorted(TARGETS)
    share_s = options.seconds / len(names)
    failed = []
    began = time.monotonic()
    print(f"{'target':20} {'runs':>12} {'per s':>9} {'kept':>6}  result")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="pruneloop-fuzz-") as work:
            folder, merged = Path(work) / "work", Path(work) / "merged"
            kept = CORPUS / name
            shutil.copytree(kept, folder) if kept.is_dir() else folder.mkdir()
            merged.mkdir()
            for data in seeds()[name]:
                (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
            started = time.monotonic()
            code, text = _child(name, folder, "--seconds", str(max(1, int(share_s))))
            took_s = time.monotonic() - started
            # The fewest and smallest inputs that reach all code that was reached.
            if _child(name, folder, "--merge-into", str(merged))[0] == 0:
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(merged, kept)
        runs = next((int(line.split()[-1]) for line in text.splitlines() if "number_of_executed_units" in line), 0)
        count = len(list(kept.iterdir())) if kept.is_dir() else 0
        result = "CRASH" if code else "ok"
        print(f"{name:20} {runs:12} {runs / took_s:9.0f} {count:6}  {result}", flush=True)
        if code:
            failed.append(name)
            print(text[-3000:], flush=True)
    print(f"{time.monotonic() - began:.0f} s in all; {len(failed)} crashed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _child(name: str, folder: Path, *more: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.fuzz", "--child", name, str(folder), *more]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        log.seek(0)
        return code, log.read()


if __name__ == "__main__":
    sys.exit(main())
