"""What runs inside a converter's own environment: requests in, one a line, answers out. Stands alone; never imported by us.

    PYTHON child.py litert PATH/TO/rebuild.py

The model comes as a torch file (safetensors with its graph), which ``rebuild.py`` makes a module of: neither our source nor the
user's is needed here. Each request names a folder that holds what it takes and gets what it gives. The process ends when its
standard input does, or after ``IDLE_S`` without a request: importing a converter takes seconds, and a gigabyte of memory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

IDLE_S = 300.0
PACKAGES = {"litert": ("litert-torch", "torch"), "executorch": ("executorch", "torch")}


def main() -> None:
    format, rebuild = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # converters print what they like
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    steps = _loaded(Path(__file__).with_name(f"{format}_steps.py"))
    steps.load_model = _loaded(Path(rebuild)).rebuild

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say({"versions": {name: version(name) for name in PACKAGES[format]}})
    waiting = b""
    while select.select([requests], [], [], IDLE_S)[0]:
        read = requests.read(65536)
        if not read:
            return
        waiting += read
        while b"\n" in waiting:
            line, _, waiting = waiting.partition(b"\n")
            request = json.loads(line)
            try:
                getattr(steps, request["step"])(Path(request["folder"]), request["options"])
            except Exception as error:  # a converter raises what it likes, and the next request is another one's
                traceback.print_exc()
                text = (str(error).strip().splitlines() or [""])[0]
                say({"error": f"{type(error).__name__}: {text}"[:500]})
            else:
                say({"done": request["step"]})


def _loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
