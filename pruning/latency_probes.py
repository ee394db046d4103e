"""The shapes a device is told apart by before anything is trained: a few networks, narrowed all over, with and without blocks.

What a network takes on a device depends on its shape alone, so an untrained one tells it as well, for a second instead of a
recovery. The shapes lie at the corners: what is left when all is narrow and all blocks are gone is the time that no pruning
removes, and a predictor that has seen it need not guess beyond what it knows. One is a step wider than another: what that step
takes tells how the device packs channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from domain.candidate import BlockInfo, Candidate, GroupInfo

NARROWEST = 1 / 8
WITH_BLOCKS = (1 / 2, NARROWEST)
WITHOUT_BLOCKS = (1 / 2, 1 / 4, NARROWEST)
BETWEEN = (1 / 4, 3 / 4)  # where there is no block to drop


def shapes(groups: Sequence[GroupInfo], blocks: Sequence[BlockInfo]) -> list[Candidate]:
    """Return candidates to be timed and nothing else; none is the dense model."""
    if not groups and not blocks:
        return []
    every = tuple(block.name for block in blocks)
    wanted: list[tuple[float, int, tuple[str, ...]]] = [(share, 0, ()) for share in WITH_BLOCKS]
    wanted.append((WITH_BLOCKS[0], 1, ()))
    wanted += [(share, 0, every) for share in (WITHOUT_BLOCKS if blocks else BETWEEN)]
    found = [
        Candidate(sparsity={}, widths={group.name: _kept(group, share, more) for group in groups}, dropped=dropped)
        for share, more, dropped in wanted
    ]
    distinct = {candidate.identity: candidate for candidate in found}
    return [candidate for candidate in distinct.values() if not candidate.is_dense(list(groups))]


def _kept(group: GroupInfo, share: float, more: int = 0) -> int:
    step = group.granularity or min(4, group.channels)
    return min(group.channels, max(step, (round(group.channels * share / step) + more) * step))
