"""How often an address may fail, and how often it may join: a bucket of tries for each, filled again with time.

In this process only: behind a balancer each process counts for itself, so the limit is that many times as wide.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from domain.errors import RateLimited

MOST_ADDRESSES = 10_000  # the one heard of longest ago is forgotten: memory stays flat whoever knocks


class Buckets:
    """Tries by address.

    Args:
        size: Tries at once.
        per_s: Tries that come back every second.
        clock: Monotonic seconds.

    Source: the token bucket, e.g. RFC 2697.
    """

    def __init__(self, size: float, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._per_s = per_s
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (tries left, when)
        self._lock = threading.Lock()

    def take(self, address: str) -> None:
        """Use up a try. Raises RateLimited."""
        with self._lock:
            left = self._now_left(address)
            self._keep(address, max(0.0, left - 1.0))
        if left < 1.0:
            raise self._refusal(left)

    def look(self, address: str) -> None:
        """Use up nothing. Raises RateLimited where no try is left."""
        with self._lock:
            left = self._now_left(address)
        if left < 1.0:
            raise self._refusal(left)

    def _now_left(self, address: str) -> float:
        left, at = self._left.get(address, (self._size, self._clock()))
        return min(self._size, left + (self._clock() - at) * self._per_s)

    def _keep(self, address: str, left: float) -> None:
        self._left[address] = (left, self._clock())
        self._left.move_to_end(address)
        if len(self._left) > MOST_ADDRESSES:
            self._left.popitem(last=False)

    def _refusal(self, left: float) -> RateLimited:
        wait_s = max(1, math.ceil((1.0 - left) / self._per_s))
        return RateLimited(
            f"Too many tries from this address; come back in {wait_s} s.", metadata={"retry_after_s": wait_s}
        )


class Known:
    """Secrets that were good a moment ago, as hashes: one bad neighbour behind the same address must not shut them out."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, secret: str) -> bool:
        return _hash(secret) in self._seen

    def add(self, secret: str) -> None:
        with self._lock:
            self._seen[_hash(secret)] = None
            if len(self._seen) > MOST_ADDRESSES:
                self._seen.popitem(last=False)

    def discard(self, secret: str) -> None:
        with self._lock:
            self._seen.pop(_hash(secret), None)


@dataclass(frozen=True)
class Limits:
    """What one app counts. Thirty wrong tokens at once and one every two seconds; sixty joins at once and one a second."""

    failing: Buckets = field(default_factory=lambda: Buckets(30, 0.5))
    joining: Buckets = field(default_factory=lambda: Buckets(60, 1.0))
    known: Known = field(default_factory=Known)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
