"""schemathesis for forty seconds, stateful, every check on; `make test-api` does it with everybody's token, ten thousand times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.whole_api.__main__ import ask_everything
from tests.whole_api.server import whole_api

SECONDS = 40
LEAST = 100  # of a machine that does other things


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_generated_from_the_openapi_text_is_answered_as_it_says(database_url: str, tmp_path: Path) -> None:
    with whole_api(database_url, tmp_path) as everybody:
        count, code, text = ask_everything(
            everybody, "admin", examples=3, seed=0, phases="examples,fuzzing,stateful", max_time_s=SECONDS
        )
    assert code == 0, text
    assert count >= LEAST, text
