"""The network of a job in arrays: what any widths cost on paper, for whole batches of widths at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from domain.candidate import BlockInfo, GroupInfo, is_inside
from domain.network import LayerInfo

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Network:
    """Groups, blocks, and the layers they belong to.

    Candidates are rows: a column a group with the channels kept, then a column a block, 1 where it is kept and 0 where dropped.

    Args:
        groups: The groups, in their order.
        layers: The layers, with the groups that feed and read them. Where there are none (a builder that does not tell), each
            group counts as one layer that reads what it writes.
        blocks: The blocks that may be dropped; none where the job does not prune blocks.
        has_channels: Whether the job prunes channels.
    """

    def __init__(
        self,
        groups: Sequence[GroupInfo],
        layers: Sequence[LayerInfo] = (),
        blocks: Sequence[BlockInfo] = (),
        *,
        has_channels: bool = True,
    ) -> None:
        self.groups = tuple(groups)
        self.has_channels = has_channels
        self.blocks = tuple(blocks)
        self.names = tuple(group.name for group in groups)
        self.dense: Ints = np.array([group.channels for group in groups] + [1] * len(blocks), dtype=np.int64)
        self._channels = self.dense[: len(self.groups)]
        layers = tuple(layers) or tuple(_alone(group) for group in groups)
        self._macs: Floats = np.array([layer.macs for layer in layers], dtype=float)
        self._positions: Floats = np.array([layer.positions for layer in layers], dtype=float)
        self._out_channels: Ints = np.array([layer.out_channels for layer in layers], dtype=np.int64)
        self._in_channels: Ints = np.array([layer.in_channels for layer in layers], dtype=np.int64)
        self._out = _incidence(self.names, [layer.out_groups for layer in layers])
        self._in = _incidence(self.names, [layer.in_groups for layer in layers])
        # Which layers and which groups go with which block.
        self._inside = np.array(
            [[is_inside(layer.name, (block.name,)) for block in blocks] for layer in layers], dtype=float
        )
        self.groups_inside = np.array(
            [[group.name in block.groups for group in groups] for block in blocks], dtype=bool
        ).reshape(len(self.blocks), len(self.groups))

    def row(self, widths: Mapping[str, int], dropped: Collection[str] = ()) -> Ints:
        """Return a candidate as a row; a group not named keeps all."""
        kept = [widths.get(group.name, group.channels) for group in self.groups]
        return np.array([*kept, *(int(block.name not in dropped) for block in self.blocks)], dtype=np.int64)

    def widths_of(self, row: Ints) -> dict[str, int]:
        """Return a row's widths by group."""
        return {name: int(width) for name, width in zip(self.names, row, strict=False)}

    def dropped_of(self, row: Ints) -> tuple[str, ...]:
        """Return the blocks a row drops."""
        return tuple(block.name for block, kept in zip(self.blocks, row[len(self.groups) :], strict=True) if not kept)

    def macs_share(self, rows: Ints, *, align: int = 1) -> Floats:
        """Return the share of multiply-accumulates that rows keep, with channels rounded up to multiples of ``align``."""
        out, into = self._kept(rows)
        work = self._macs * _ratio(out, self._out_channels, align) * _ratio(into, self._in_channels, align)
        return _share(work * self._present(rows), self._macs)

    def traffic_share(self, rows: Ints) -> Floats:
        """Return the share of activations that layers write."""
        out, _ = self._kept(rows)
        return _share(self._positions * out * self._present(rows), self._positions * self._out_channels)

    def weights_share(self, rows: Ints) -> Floats:
        """Return the share of weights that layers read."""
        weights = self._macs / self._positions
        out, into = self._kept(rows)
        return _share(weights * (out / self._out_channels) * (into / self._in_channels) * self._present(rows), weights)

    def layers_share(self, rows: Ints) -> Floats:
        """Return the share of layers that are there at all."""
        return np.asarray(self._present(rows).mean(axis=-1))

    def work_of_columns(self) -> Floats:
        """Return the share of all multiply-accumulates that each group or block takes part in, shape ``(columns,)``."""
        touched = np.hstack([((self._out + self._in) > 0).astype(float), self._inside])
        return np.asarray(self._macs @ touched / (float(self._macs.sum()) or 1.0))

    def _kept(self, rows: Ints) -> tuple[Floats, Floats]:
        """Return output and input channels of every layer, each of shape ``(..., layers)``."""
        lost = (self._channels - rows[..., : len(self.groups)]).astype(float)
        return self._out_channels - lost @ self._out.T, self._in_channels - lost @ self._in.T

    def _present(self, rows: Ints) -> Floats:
        """Return 1 for every layer that is there, 0 for those of dropped blocks, shape ``(..., layers)``."""
        gone = (1 - rows[..., len(self.groups) :]).astype(float) @ self._inside.T
        return np.asarray((gone == 0).astype(float))


def _share(part: Floats, whole: Floats) -> Floats:
    return np.asarray(part.sum(axis=-1) / (float(whole.sum()) or 1.0))


def _ratio(kept: Floats, dense: Ints, align: int) -> Floats:
    return np.asarray(_rounded(kept, align) / _rounded(dense.astype(float), align))


def _rounded(channels: Floats, align: int) -> Floats:
    """Round channels up to multiples of ``align``; below it kernels have smaller steps too: to half and to a quarter of it."""
    step = np.where(channels <= align / 4, align / 4, np.where(channels <= align / 2, align / 2, align))
    step = np.maximum(step, 1.0)
    return np.asarray(np.ceil(channels / step) * step)


def _incidence(names: Sequence[str], layers: Sequence[Mapping[str, int]]) -> Floats:
    place = {name: index for index, name in enumerate(names)}
    matrix = np.zeros((len(layers), len(names)))  # of floats: numpy multiplies those by BLAS
    for row, groups in enumerate(layers):
        for name, each in groups.items():
            if name in place:
                matrix[row, place[name]] = each
    return matrix


def _alone(group: GroupInfo) -> LayerInfo:
    own = {group.name: 1}
    return LayerInfo(
        name=group.name,
        macs=group.macs,
        positions=1,
        out_channels=group.channels,
        in_channels=group.channels,
        out_groups=own,
        in_groups=own,
    )
