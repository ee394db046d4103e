"""Pages made from the code say what the code says."""

from __future__ import annotations

import pytest

from tests.docs.generated import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_that_of_the_code(name: str) -> None:
    path = DOCS / name
    assert path.is_file() and path.read_text() == PAGES[name](), f"docs/{name} is not the code's; run `make reference`"
