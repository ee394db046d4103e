"""Pages made from the code say what the code says."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from client.config import ClientConfig
from tests.docs.generated import DOCS, PAGES, ROOT
from tests.docs.pages import errors, job, settings
from workers.agent.settings import AgentSettings


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_that_of_the_code(name: str) -> None:
    path = DOCS / name
    assert path.is_file() and path.read_text() == PAGES[name](), f"docs/{name} is not the code's; run `make reference`"


@pytest.mark.parametrize(
    "part", [*job.PARTS, *settings.SERVER, AgentSettings, ClientConfig], ids=lambda part: part.__name__
)
def test_every_field_that_a_user_may_set_says_what_it_means(part: type[BaseModel]) -> None:
    assert not [name for name, field in part.model_fields.items() if not field.description]
    assert part.__doc__


def test_every_code_that_a_test_expects_of_us_is_on_the_page() -> None:
    """The page is found by reading the source; the tests are the other witness of which codes there are."""
    asked = re.compile(r"""(?:\.code|\["code"\]) == "([a-z][a-z0-9_]+)\"""")
    expected = {code for path in (ROOT / "tests").rglob("*.py") for code in asked.findall(path.read_text())}
    # `unknown_…` stands for unknown_exporter and its like.
    known = [re.compile(re.escape(use.code).replace("…", "[a-z]+")) for use in errors.uses()]
    assert len(expected) > 40
    assert not [code for code in expected if not any(one.fullmatch(code) for one in known)]
