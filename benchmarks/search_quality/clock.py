"""The wall clock of one run: what a method may spend, and the end of it."""

from __future__ import annotations

import time


class TimeUp(Exception):
    """The budget is spent; what is not kept by now does not count."""


class Clock:
    """Counts from its making.

    Args:
        budget_s: Wall-clock seconds a method has for everything it does.
    """

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self._begin_s = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._begin_s

    def left_s(self) -> float:
        return self.budget_s - self.elapsed_s()

    def check(self) -> None:
        """Raise ``TimeUp`` once the budget is spent."""
        if self.left_s() <= 0:
            raise TimeUp

    def tick(self, fraction: float) -> None:
        """Do the same as a progress callback, so that a training past its time ends within a batch."""
        self.check()
