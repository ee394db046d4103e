"""Names of rows: a prefix that says what it is, then 128 bits that sort by the time they were made."""

from __future__ import annotations

import secrets
import threading
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
LENGTH = 26
RANDOM_BITS = 80

_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """Return ``<prefix>_<26 characters>``; ids made by one process always sort in the order they were made.

    Between processes they sort by their hosts' clocks, so nothing that matters is decided by them alone.

    Source: ULID, https://github.com/ulid/spec: 48 bits of milliseconds, 80 random bits, Crockford's base 32.
    """
    global _last
    with _lock:
        value = time.time_ns() // 1_000_000 << RANDOM_BITS | secrets.randbits(RANDOM_BITS)
        # Two ids of one millisecond, or a clock set back, must still sort in order.
        _last = value = value if value > _last else _last + 1
    return f"{prefix}_{_encode(value)}"


def _encode(value: int) -> str:
    return "".join(ALPHABET[value >> shift & 31] for shift in range((LENGTH - 1) * 5, -1, -5))
