"""``python -m pruning.from_onnx.child FILE MEMORY_BYTES CPU_S``: convert a file under limits and say what is wrong with it.

The last line of stdout is JSON: ``{}`` where nothing is, else ``{code, message, fields, metadata}``.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path


def main() -> int:
    path, memory_bytes, cpu_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s) + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has nothing to write
    import torch  # under the limits already

    from domain.errors import Invalid
    from pruning.from_onnx import convert

    torch.set_num_threads(1)
    told: dict[str, object] = {}
    try:
        convert(path.read_bytes(), frees_batch=True)
    except Invalid as error:
        fields = [problem.message for problem in error.fields]
        told = {"code": error.code, "message": error.message, "fields": fields, "metadata": dict(error.metadata)}
    except MemoryError:
        message = "The ONNX file needs more memory to be read than a reader is given; export a smaller one."
        told = {"code": "bad_onnx", "message": message, "fields": [message], "metadata": {}}
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
