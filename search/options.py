"""Parts of the search that can be switched off, to find out what each is worth. A user never needs to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

from domain.errors import Invalid


@dataclass(frozen=True)
class Parts:
    """Which parts of the search are on."""

    latency_model: bool = True
    seeds: bool = True
    ranges: bool = True  # of each group, corrected by trials, and of the speed-ups the sampler draws
    inheritance: bool = True
    overlap: bool = (
        True  # without it a target has one trial at a time, and what is asked does not depend on who is fast
    )

    @classmethod
    def without(cls, names: Collection[str]) -> Parts:
        """Return all parts but the named ones. Raises Invalid ``unknown_part``."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise Invalid(
                f"The search has no part {', '.join(unknown)}; it has: {', '.join(known)}.", code="unknown_part"
            )
        return cls(**{name: name not in names for name in known})
