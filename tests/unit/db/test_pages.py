"""Page tokens: what was written is read, and anything else is refused by name."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.pages import coerce_page_size, moment_in_token, read_page_token, write_page_token
from domain.errors import Invalid

STORABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)


@settings(derandomize=True, database=None)
@given(st.text(max_size=40), STORABLE, st.integers(0, 2**63 - 1))
def test_a_token_gives_back_its_key(name: str, text: str, number: int) -> None:
    assert read_page_token(name, write_page_token(name, [text, number]), str, int) in {(text, number)}


@pytest.mark.parametrize("after", [["a\x00b"], ["\ud800"], [-1], [2**63]])
def test_what_no_row_can_hold_is_no_key(after: list[str | int]) -> None:
    with pytest.raises(Invalid):
        read_page_token("jobs:", write_page_token("jobs:", after), type(after[0]))


def test_no_token_is_the_first_page() -> None:
    assert read_page_token("jobs:", "", str) is None


def encoded(body: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(body).encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        "!",
        "é",
        "abc",
        "a" * 5000,
        encoded([]),
        encoded({}),
        encoded(7),
        encoded(["jobs:"]),
        encoded(["jobs:", 1]),
        encoded(["jobs:", "x", "y"]),
        encoded(["jobs:", None]),
        encoded(["trials:", "x"]),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
def test_what_is_no_token_of_the_list_is_refused(token: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_page_token("jobs:", token, str)
    assert caught.value.code == "bad_page_token"
    assert caught.value.fields[0].field == "page_token"


@settings(derandomize=True, database=None)
@given(st.text(max_size=60))
def test_no_text_whatever_breaks_the_reader(token: str) -> None:
    try:
        read_page_token("jobs:", token, str)
    except Invalid:
        return
    assert token == ""


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-01T00:00:00"])
def test_a_moment_needs_its_zone(text: str) -> None:
    with pytest.raises(Invalid):
        moment_in_token(text)


@pytest.mark.parametrize(("asked", "given"), [(-5, 1), (0, 1), (1, 1), (50, 50), (1001, 1000)])
def test_a_page_size_is_brought_into_range(asked: int, given: int) -> None:
    assert coerce_page_size(asked) == given
