"""The measured process: ``python -m workers.agent.measure_child``.

It imports what every measurement needs, says that it is ready, reads one job (a line of JSON) from standard input, and answers
in lines of JSON on what was standard output: stages as they begin, then the outcome. Standard input stays open for as long as
the parent wants an answer: when it closes, the child is gone, whatever it was doing.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from workers.agent.carry_out import ChildJob, carry_out
from workers.agent.lifeline import die_with_parent

OOM_SCORE = "800"  # where memory runs out, the kernel should take this process and not the agent


def main() -> None:
    """Carry out one job and leave without tearing anything down."""
    answers = _claim_standard_output()
    die_with_parent(signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in sys.argv[1:]:
        with suppress(ImportError):  # the runtime says so itself, with what to install
            importlib.import_module(name)

    def answer(message: dict[str, object]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    answer({"ready": os.getpid()})
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)
    threading.Thread(target=_leave_at_end_of_input, daemon=True).start()
    job = ChildJob.model_validate_json(line)
    outcome = carry_out(job, lambda stage, index: answer({"stage": stage, "file": index}))
    _write_all(answers, json.dumps({"outcome": outcome.model_dump(mode="json")}).encode() + b"\n")
    os._exit(0)  # a runtime that crashes while it is torn down has been measured all the same


def _claim_standard_output() -> int:
    """Keep standard output for the answers; whatever a library prints goes to standard error."""
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    return answers


def _leave_at_end_of_input() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(3)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()
