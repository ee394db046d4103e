"""Runtimes that misbehave, installed as a plug-in would be, for the measuring child to find."""

from __future__ import annotations

from pathlib import Path

# One class a vice; each is a whole runtime otherwise, so that nothing but the vice can be the cause.
CODE = """
import ctypes, os, signal, sys, time
import numpy as np
from domain.device import RuntimeInfo
from workers.agent.runtimes.base import TensorSpec


class Session:
    inputs = (TensorSpec("x", (None, 2), "float32"),)
    conditions = {"runtime": "test", "runtime_version": "1"}

    def __init__(self, vice): self.vice, self.runs, self.x = vice, 0, None

    def bind(self, feeds): self.x = np.array(feeds["x"])

    def run(self):
        self.runs += 1
        time.sleep(0.0005)
        if self.runs > 3: self.vice()

    def outputs(self): return {"y": self.x * 2}


def nothing(): pass
def hang(): time.sleep(3600)
def segfault(): ctypes.string_at(0)
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def leave(): os._exit(7)
def throw(): raise RuntimeError("the operator is not implemented")
def chat(): print("libraries talk too much"); sys.stdout.flush()


def hoard():
    kept = []
    while True:
        kept.append(np.ones(4 << 20))
        time.sleep(0.001)


def gulp(): np.ones(1 << 40)


def breed():
    if os.fork() == 0:
        with open(os.environ["CHILD_PID_FILE"], "w") as file: file.write(str(os.getpid()))
        time.sleep(3600)
    time.sleep(3600)


def make(vice):
    class Runtime:
        name, formats = "test", ("onnx",)

        def probe(self): return RuntimeInfo(name="test", available=True, version="1", formats=("onnx",))

        def load(self, path, *, threads, precision, batch):
            # The vice is the candidate's alone: its file says so.
            return Session(vice if path.read_bytes() == b"candidate" else nothing)

    return Runtime


for vice in (nothing, hang, segfault, kill, leave, throw, chat, hoard, gulp, breed):
    globals()["Runtime_" + vice.__name__] = make(vice)
"""
# ONNX Runtime, but files that say so in themselves take their process down: whatever else it runs, it runs well.
FRAIL = """
from domain.device import RuntimeInfo
from vices_plugin import hang, hoard, segfault, throw
from workers.agent.runtimes.onnxruntime import OnnxRuntime

VICES = {b"vice: hang": hang, b"vice: hoard": hoard, b"vice: segfault": segfault, b"vice: throw": throw}


class Frail(OnnxRuntime):
    name = "frail"

    def __init__(self):
        super().__init__("onnxruntime")

    def load(self, path, *, threads, precision, batch):
        session = super().load(path, threads=threads, precision=precision, batch=batch)
        for mark, vice in VICES.items():
            if mark in path.read_bytes():
                return _Marked(session, vice)
        return session


class _Marked:
    def __init__(self, session, vice):
        self._session, self._vice, self._runs = session, vice, 0

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run(self):
        self._session.run()
        self._runs += 1
        if self._runs > 3:
            self._vice()
"""
# ONNX Runtime on a machine that is so many times slower at everything.
PACED = """
import os
from workers.agent.runtimes.onnxruntime import OnnxRuntime


class Paced(OnnxRuntime):
    name = "paced"

    def __init__(self):
        super().__init__("onnxruntime")

    def load(self, path, *, threads, precision, batch):
        session = super().load(path, threads=threads, precision=precision, batch=batch)
        return _Slowed(session, int(os.environ["PACED_RUNS"]))


class _Slowed:
    def __init__(self, session, times):
        self._session, self._times = session, times

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run(self):
        for _ in range(self._times):
            self._session.run()
"""
# ONNX Runtime with an operator set of its own: what the golden model needs is not in it.
NARROW = """
from workers.agent.health import DIGESTS
from workers.agent.runtimes.onnxruntime import OnnxRuntime
from domain.artifact import digest_of_file


class Narrow(OnnxRuntime):
    name = "narrow"

    def __init__(self):
        super().__init__("onnxruntime")

    def load(self, path, *, threads, precision, batch):
        if digest_of_file(path) in DIGESTS.values():
            raise RuntimeError("MatMul is not implemented here")
        return super().load(path, threads=threads, precision=precision, batch=batch)
"""
VICES = ("nothing", "hang", "segfault", "kill", "leave", "throw", "chat", "hoard", "gulp", "breed")


def install_frail(folder: Path) -> Path:
    """Lay out the one runtime that is well but for marked files; return the folder, to be put on PYTHONPATH."""
    return _lay_out(folder, "frail = frail_plugin:Frail\n")


def install_paced(folder: Path) -> Path:
    """Lay out the runtime whose speed ``PACED_RUNS`` says; return the folder, to be put on PYTHONPATH."""
    return _lay_out(folder, "paced = paced_plugin:Paced\n")


def install_bad_golden(folder: Path) -> Path:
    """Lay out a runtime that takes any file but the golden model's; return the folder, to be put on PYTHONPATH."""
    return _lay_out(folder, "narrow = narrow_plugin:Narrow\n")


def install(folder: Path) -> Path:
    """Lay the plug-in out in a folder as pip would; return the folder, to be put on PYTHONPATH."""
    return _lay_out(folder, "".join(f"{vice} = vices_plugin:Runtime_{vice}\n" for vice in VICES))


def _lay_out(folder: Path, entries: str) -> Path:
    info = folder / "vices-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "vices_plugin.py").write_text(CODE)
    (folder / "frail_plugin.py").write_text(FRAIL)
    (folder / "paced_plugin.py").write_text(PACED)
    (folder / "narrow_plugin.py").write_text(NARROW)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vices\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pruneloop.runtimes]\n{entries}")
    return folder
