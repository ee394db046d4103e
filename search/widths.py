"""The widths a group may be given: all that some device packs well; which of them save time is for its latency model."""

from __future__ import annotations

from domain.candidate import GroupInfo

PACKS = 8  # channels: AVX2 and NEON pack 8, AVX-512 16, int8 kernels 4 or more
FINE = 4  # below two packs: a narrow group would be left hardly any width


def widths_of(group: GroupInfo) -> list[int]:
    """Return the widths a group may be given, narrowest first, its own last: 4, 8, 12, 16, then multiples of 8.

    A group that says its own granularity (heads: 1) has multiples of that.

    Source: ONNX Runtime's CPU kernels pack channels in blocks of 16 (AVX-512) or 8 (AVX2, NEON), our own measurement;
    VainF/Torch-Pruning issue 38 (odd widths ran three times slower than dense).
    """
    channels = group.channels
    if group.granularity is not None:
        return sorted({*range(group.granularity, channels, group.granularity), channels})
    fine = range(FINE, min(channels, 2 * PACKS + 1), FINE)
    return sorted({*fine, *range(3 * PACKS, channels, PACKS), channels})


def kept_width(group: GroupInfo, sparsity: float) -> int:
    """Return the channels kept: the allowed width nearest to ``channels * (1 - sparsity)``, or all of them.

    Of two equally near widths the wider, which is the safer.
    """
    wanted = group.channels * (1.0 - sparsity)
    return min(widths_of(group), key=lambda width: (abs(width - wanted), -width))
