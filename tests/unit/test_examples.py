"""Every example job is a job."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from client.files import with_uploads
from domain.job import JobSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.name)
def test_an_example_job_is_valid(path: Path) -> None:
    spec = yaml.safe_load(path.read_text())
    # Files named by their path are uploaded by `submit`; here any digest stands for them.
    changed = with_uploads(spec, Path("/"), lambda *_: "sha256:" + "0" * 64, exists=lambda _: True)
    assert JobSpec.model_validate(changed or spec).name
