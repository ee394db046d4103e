"""A clock that only moves when something runs, and sessions that take a known time on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class FakeClock:
    """Nanoseconds; every look costs 50 of them."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 50
        return self.now_ns

    @property
    def now_s(self) -> float:
        return self.now_ns / 1e9


class FakeSession:
    """Takes ``run_ms`` a run, times what the machine does to everybody, plus noise that only ever adds time."""

    def __init__(
        self,
        clock: FakeClock,
        run_ms: float,
        rng: np.random.Generator,
        *,
        noise: float = 0.02,
        burst: float = 0.0,
        machine: Callable[[float], float] = lambda now_s: 1.0,
    ) -> None:
        self.clock = clock
        self.run_ms = run_ms
        self.rng = rng
        self.noise = noise
        self.burst = burst
        self.machine = machine
        self.runs = 0

    def run(self) -> None:
        self.runs += 1
        ms = self.run_ms * self.machine(self.clock.now_s) * (1 + self.rng.exponential(self.noise))
        if self.rng.random() < self.burst:
            ms += 4.0  # somebody else's time slice
        self.clock.now_ns += int(ms * 1e6)
