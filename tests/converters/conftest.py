"""Real converters in their own environments; skipped where these are not there, unless `make test-converters` asks."""

from __future__ import annotations

import os

import pytest

from pruning.converters import FORMATS, why_missing
from tests.e2e.conftest import system

__all__ = ["system"]

ASKED = "PRUNELOOP_TEST_CONVERTERS"  # set by `make test-converters`: then a missing environment is a failure


@pytest.fixture(autouse=True)
def _environments() -> None:
    missing = [text for text in map(why_missing, FORMATS) if text is not None]
    if missing:
        text = "; ".join(missing)
        if os.environ.get(ASKED):
            pytest.fail(text)
        pytest.skip(text)
