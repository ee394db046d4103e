"""docs/reference/job.md: every field of a job's file."""

from __future__ import annotations

from pydantic import BaseModel

from domain.job import (
    Budget,
    DataSpec,
    DeviceSelector,
    FinalSpec,
    JobSpec,
    ModelSpec,
    Objective,
    RecoverySpec,
    TargetSpec,
)
from tests.docs.pages.markdown import code, default_of, limits_of, page, table, type_text

PARTS: tuple[type[BaseModel], ...] = (
    JobSpec, ModelSpec, DataSpec, TargetSpec, DeviceSelector, Objective, Budget, RecoverySpec, FinalSpec,
)  # fmt: skip

HEAD = """
What `pruneloop submit FILE.yaml` takes, and `POST /v1/jobs`: YAML or JSON. Only `model`, `data` and one target are
required. A field that is not here is refused, by name.

```yaml
model: {name: resnet20, params: {width: 16}}
data: {name: mnist-5k}
targets: [{}]
```

Where the server wants a digest (`model.artifact`, `model.weights`, `data.artifact`), a file may give a path, seen from
the file: `submit` and the Python client upload it first.
"""


def text() -> str:
    return page(
        "Job file",
        HEAD,
        *(f"## {part.__name__}\n\n{(part.__doc__ or '').replace('``', '`')}\n\n{_fields(part)}" for part in PARTS),
    )


def _fields(part: type[BaseModel]) -> str:
    rows = []
    for name, field in part.model_fields.items():
        kind = type_text(field.annotation)
        bounds = limits_of(field)
        rows.append((code(name), kind + (f"; {bounds}" if bounds else ""), default_of(field), field.description or ""))
    return table(("field", "is", "default", "meaning"), rows)
