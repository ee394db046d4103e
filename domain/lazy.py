"""Rows that are parsed when somebody looks at them: most questions to a job's rows need few of them, known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

Item = TypeVar("Item")


class LazyRow(Generic[Item]):
    """A row under its names, and the way to parse it; parsed at most once, but by threads that look at the same moment.

    Args:
        names: What it can be found by, ``{"id": ..., "key": ...}``.
        parse: Returns what the row says.
    """

    def __init__(self, names: Mapping[str, str], parse: Callable[[], Item]) -> None:
        self.names = names
        self._parse: Callable[[], Item] | None = parse
        self._value: Item | None = None

    @property
    def value(self) -> Item:
        parse = self._parse
        if parse is not None:
            self._value = parse()
            self._parse = None  # the raw row goes
        return self._value  # type: ignore[return-value]


class LazyRows(Sequence[Item]):
    """Rows in order, equal to any sequence of the same items; ``by`` finds them by name."""

    def __init__(self, rows: Sequence[LazyRow[Item]]) -> None:
        self._rows = rows

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return LazyRows(self._rows[index])
        return self._rows[index].value

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def by(self, name: str) -> Mapping[str, Item]:
        return _Found({row.names[name]: row for row in self._rows})


class _Found(Mapping[str, Item]):
    def __init__(self, rows: Mapping[str, LazyRow[Item]]) -> None:
        self._rows = rows

    def __getitem__(self, name: str) -> Item:
        return self._rows[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows


def by_name(rows: Sequence[Item], name: str) -> Mapping[str, Item]:
    """Return rows by one of their names; those that are lazy stay so."""
    return rows.by(name) if isinstance(rows, LazyRows) else {getattr(row, name): row for row in rows}
