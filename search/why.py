"""Why not faster: what each group's removed channels bought on the target, and what would buy nothing. All of it predicted.

For a candidate and each group that is left, everything else staying as it is: the time that the channels it lost save, how many
could come back at no cost (the target packs channels, so a width just above a step costs as much as the next one up), and where
its next step lies.
"""

from __future__ import annotations

import numpy as np
from pydantic import JsonValue

from domain.candidate import is_inside
from search.latency_model import LatencyModel
from search.network import Ints
from search.widths import widths_of

NOTHING = 0.002  # of the dense latency: below it a difference of predictions means nothing


def account(latency: LatencyModel, row: Ints, *, dense_ms: float) -> list[JsonValue]:
    """Return one entry a group, the least rewarding removals first.

    Args:
        latency: Of the target, in the candidate's precision.
        row: The candidate.
        dense_ms: Measured latency of the dense model in the target's first precision, which ratios are to.

    Each entry has ``group``, ``channels``, ``kept``, ``bought_ms`` (predicted, of all channels it lost together),
    ``free_channels`` (that would come back at no predicted cost) and ``next_step`` (``{"kept", "saves_ms"}``, or None where no
    narrowing of this group alone saves anything any more).
    """
    network = latency.network
    now = float(latency.formula(row[None])[0])
    entries: list[tuple[float, dict[str, JsonValue]]] = []
    gone = network.dropped_of(row)
    for index, group in enumerate(network.groups):
        if is_inside(group.name, gone):
            continue
        allowed = np.array(widths_of(group))
        tried = np.repeat(row[None], len(allowed), axis=0)
        tried[:, index] = allowed
        ratios = latency.formula(tried)
        wider = (allowed > row[index]) & (ratios <= now + NOTHING)
        narrower = np.flatnonzero((allowed < row[index]) & (ratios < now - NOTHING))
        bought_ms = float(ratios[-1] - now) * dense_ms
        step: JsonValue = None
        if len(narrower):
            best = int(narrower[-1])
            step = {"kept": int(allowed[best]), "saves_ms": round(float(now - ratios[best]) * dense_ms, 4)}
        free = int(allowed[wider].max() - row[index]) if wider.any() else 0
        entry: dict[str, JsonValue] = {
            "group": group.name,
            "channels": group.channels,
            "kept": int(row[index]),
            "bought_ms": round(bought_ms, 4),
            "free_channels": free,
            "next_step": step,
        }
        entries.append((bought_ms / max(1, group.channels - int(row[index])), entry))
    return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]


def fixed_ms(latency: LatencyModel, *, dense_ms: float) -> float:
    """Return the predicted time that no pruning of channels removes: the calls themselves, whatever their widths."""
    return float(latency.coefficients[0]) * latency.scale * dense_ms
