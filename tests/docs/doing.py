"""Does what a page says, as a reader would: in a checkout of its own, with a shell that goes on from block to block."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.generated import ROOT
from tests.docs.reading import Block

PORT = "8420"  # of the pages; the tests use a free one
BLOCK_TIMEOUT_S = 900.0
START_TIMEOUT_S = 240.0
LEFT_OUT = (".git", ".venv", "build", "dist", ".pruneloop", "*.egg-info", "__pycache__", ".*_cache", "node_modules")


class StepFailed(AssertionError):
    """A block of a page did not do what the page says."""


@dataclass
class Reader:
    """Somebody with a terminal, a checkout called ``pruneloop`` and, beside it, a second machine.

    Args:
        folder: Where the checkout is made; short, as sockets lie in it.
        is_fresh: True: a clone, in which `make install` really installs. False: a copy of the working tree, whose environment is
            the one the tests run in.
    """

    folder: Path
    is_fresh: bool = False
    port: int = 0
    said: dict[str, str] = field(default_factory=dict)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checkout = self.folder / "pruneloop"
        self.elsewhere = self.folder / "elsewhere"
        self.elsewhere.mkdir()
        (self.folder / "home").mkdir()
        if self.is_fresh:
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.checkout)], check=True, timeout=120)
        else:
            shutil.copytree(ROOT, self.checkout, ignore=shutil.ignore_patterns(*LEFT_OUT))
            borrow_environment(self.checkout / ".venv")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._save({"HOME": str(self.folder / "home"), **environment_of_a_person()}, self.checkout)

    def do(self, block: Block) -> str:
        """Do what a block says; return what it printed. Raises StepFailed with the page, the line and the output."""
        if block.reason is not None:
            return ""
        if block.file is not None:
            path = self._folder() / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._local(block.code))
            return ""
        if not block.is_run:
            return ""
        said = self._begin(block) if block.until is not None else self._run(block)
        self.said[block.where] = said
        return said

    def close(self) -> None:
        """End what went on, the last first, as its own Ctrl-C would."""
        for process in reversed(self._running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in reversed(self._running):
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def _run(self, block: Block) -> str:
        script = self._script(block)
        # bash, not sh: `export -p` and the folder are handed to the next block whatever the block did.
        code = f"set -ae\n. {self._state}\n{script}\n{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > {self._state}\n"
        done = subprocess.run(
            ["bash", "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            timeout=BLOCK_TIMEOUT_S, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        said = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            raise StepFailed(f"{block.where} ended with {done.returncode}:\n{block.code}\n{said[-3000:]}")
        return said

    def _begin(self, block: Block) -> str:
        """Start a block that goes on; return what it said until it said what the page waits for."""
        log = self.folder / f"{block.page.stem}-{block.line}.log"
        state = f". {self._state}; "
        environment = {"PATH": os.environ["PATH"]}
        if block.is_elsewhere:
            state = f"cd {shlex.quote(str(self._folder()))}; "
            environment = {**environment_of_a_person(), "HOME": str(self.elsewhere)}
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"{state}set -e\n{self._script(block)}"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=environment,
            )  # fmt: skip
        self._running.append(process)
        deadline = time.monotonic() + START_TIMEOUT_S
        while block.until not in (said := log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StepFailed(f"{block.where} never said {block.until!r}:\n{said[-3000:]}")
            time.sleep(0.1)
        return said

    def _script(self, block: Block) -> str:
        code = self._local(block.code)
        if block.language == "sh":
            return code
        script = self.folder / f"{block.page.stem}-{block.line}.py"
        script.write_text(code)
        return f"python {shlex.quote(str(script))}"

    def _local(self, code: str) -> str:
        return code.replace(PORT, str(self.port))

    @property
    def _state(self) -> Path:
        return self.folder / "state.sh"

    def _folder(self) -> Path:
        return Path(shlex.split(self._state.read_text().splitlines()[-1])[1])

    def _save(self, environment: dict[str, str], folder: Path) -> None:
        environment = {**environment, "PRUNELOOP_PORT": str(self.port)}
        lines = [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
        self._state.write_text("\n".join([*lines, f"cd {shlex.quote(str(folder))}"]) + "\n")


def environment_of_a_person() -> dict[str, str]:
    """Return a shell's environment outside any virtual environment, but for where pip finds and keeps its wheels."""
    kept = {
        key: value for key, value in os.environ.items() if key.startswith("PIP_") or key in {"LANG", "OMP_NUM_THREADS"}
    }
    cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True)
    python = Path(getattr(sys, "_base_executable", sys.executable)).parent
    here = Path(sys.executable).parent
    path = ":".join([str(python), *(part for part in os.environ["PATH"].split(":") if part != str(here))])
    return {**kept, "PIP_CACHE_DIR": cache.stdout.strip(), "PATH": path, "LANG": kept.get("LANG", "C.UTF-8")}


def borrow_environment(folder: Path) -> None:
    """Make a virtual environment that has all packages of the one that runs the tests; what is installed into it stays in it."""
    venv.EnvBuilder(symlinks=True).create(folder)
    ours = sysconfig.get_path("purelib")
    (packages,) = folder.glob("lib/python3*/site-packages")
    # As an import line, so that the editable installs of that folder are found too.
    (packages / "borrowed.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    for tool in ("pip", "pruneloop"):
        module = "client" if tool == "pruneloop" else tool
        script = folder / "bin" / tool
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(folder / "bin/python"))} -m {module} "$@"\n')
        script.chmod(0o755)
    for marker in (".installed", ".installed-dashboard", ".installed-dev"):
        (folder / marker).touch()
