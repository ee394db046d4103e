"""Every example job is a job."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from domain.job import JobSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_an_example_job_is_valid(path: Path) -> None:
    assert JobSpec.model_validate(yaml.safe_load(path.read_text())).name
