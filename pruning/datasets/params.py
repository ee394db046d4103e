"""Parameters of a data source, checked: what is not known is refused with what is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from domain.errors import Invalid
from pruning.datasets.problems import problem


class Params:
    """A job's ``data.params``.

    Args:
        given: As the job has them.
        known: Names the source takes.

    Raises:
        Invalid: ``bad_data_params`` where others are given.
    """

    def __init__(self, given: Mapping[str, Any], known: Sequence[str]) -> None:
        self._given = given
        for name in given:
            if name not in known:
                raise problem(
                    f"data.params.{name}", "bad_data_params", f"Unknown parameter {name!r}; known: {', '.join(known)}."
                )

    def choice(self, name: str, among: Sequence[str], default: str) -> str:
        value = self._given.get(name, default)
        if value not in among:
            raise self.refused(name, f"one of {', '.join(among)}")
        return str(value)

    def whole(self, name: str, default: int, largest: int) -> int:
        value = self._given.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
            raise self.refused(name, f"a whole number from 0 to {largest}")
        return value

    def size(self, name: str, largest: int) -> tuple[int, int] | None:
        """Return (height, width); one number means a square."""
        value = self._given.get(name)
        if value is None:
            return None
        sides = [value, value] if isinstance(value, int) else value
        if (
            not isinstance(sides, list)
            or len(sides) != 2
            or not all(isinstance(s, int) and 0 < s <= largest for s in sides)
        ):
            raise self.refused(name, f"pixels, or [height, width], each from 1 to {largest}")
        return int(sides[0]), int(sides[1])

    def numbers(self, name: str, count: int, default: float) -> tuple[float, ...]:
        """Return ``count`` numbers; one number means all of them."""
        value = self._given.get(name, default)
        found = value if isinstance(value, list) else [value] * count
        if len(found) != count or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in found):
            raise self.refused(name, f"a number, or {count} of them")
        if name == "std" and any(one == 0 for one in found):
            raise self.refused(name, "numbers other than zero")
        return tuple(float(one) for one in found)

    def names(self, name: str) -> tuple[str, ...] | None:
        """Return names of columns; one may stand alone."""
        value = self._given.get(name)
        if value is None:
            return None
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
            raise self.refused(name, "the name of a column, or a list of names")
        return tuple(found)

    def shape(self, name: str) -> tuple[int, ...] | None:
        value = self._given.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not value or not all(isinstance(one, int) and one > 0 for one in value):
            raise self.refused(name, "the shape of one sample, such as [1, 28, 28]")
        return tuple(value)

    def refused(self, name: str, wanted: str) -> Invalid:
        message = f"data.params.{name} is {self._given.get(name)!r}; give {wanted}."
        return problem(f"data.params.{name}", "bad_data_params", message)
