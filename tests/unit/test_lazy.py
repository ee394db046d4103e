"""Rows that are parsed when somebody looks at them."""

from __future__ import annotations

import pytest

from domain.lazy import LazyRow, LazyRows, by_name


class Parsed:
    """Counts what was parsed."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def row(self, row_id: str) -> LazyRow[str]:
        def parse() -> str:
            self.ids.append(row_id)
            return row_id.upper()

        return LazyRow({"id": row_id, "key": f"key-{row_id}"}, parse)


def test_only_what_is_looked_at_is_parsed_and_once() -> None:
    parsed = Parsed()
    rows = LazyRows([parsed.row(name) for name in "abc"])
    by_key = by_name(rows, "key")
    assert len(rows) == 3 and list(by_key) == ["key-a", "key-b", "key-c"] and "key-b" in by_key
    assert parsed.ids == []
    assert by_key["key-b"] == rows[1] == by_name(rows, "id")["b"] == "B"
    assert parsed.ids == ["b"]
    assert by_key.get("key-x") is None
    with pytest.raises(KeyError):
        by_key["x"]


def test_rows_are_a_sequence_like_another() -> None:
    parsed = Parsed()
    rows = LazyRows([parsed.row(name) for name in "abc"])
    assert rows[1:] == ("B", "C") and rows[-1] == "C" and list(rows) == ["A", "B", "C"]
    assert rows == LazyRows([parsed.row(name) for name in "abc"]) and rows != ("A", "B") and rows != 3
    assert not LazyRows([])


def test_rows_that_are_no_lazy_ones_are_found_by_name_too() -> None:
    class Row:
        def __init__(self, key: str) -> None:
            self.key = key

    first, second = Row("a"), Row("b")
    assert by_name((first, second), "key") == {"a": first, "b": second}
