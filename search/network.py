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
        self._is_packed = np.array([layer.is_packed for layer in layers], dtype=bool)
        written = self._positions * self._out_channels
        # What each layer has of the whole, in the dense model.
        self._macs_shares = _shares(self._macs)
        self._weight_shares = _shares(self._macs / self._positions)
        self._read_shares = _shares(self._positions * self._in_channels)
        self._write_shares = _shares(written)
        self._out = _incidence(self.names, [layer.out_groups for layer in layers])
        self._in = _incidence(self.names, [layer.in_groups for layer in layers])
        read_plainly = (self._in[~self._is_packed] > 0).any(axis=0)
        hands_over = self._is_packed & (self._out[:, read_plainly] > 0).any(axis=1)
        kinds = (self._is_packed & ~hands_over, hands_over, ~self._is_packed)
        self._write_shares_by_kind = [_shares(written * kind) for kind in kinds]
        self._dense_works: dict[int, Floats] = {}
        self.known_rows: dict[str, Ints] = {}  # of trials, by id: a fit wants hundreds of them again and again
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

    def are_gone(self, rows: Ints) -> NDArray[np.bool_]:
        """Return which groups lie in a block that a row drops, shape ``(n, groups)``."""
        groups = len(self.groups)
        return np.asarray((rows[:, groups:] == 0).astype(float) @ self.groups_inside.astype(float) > 0)

    def macs_share(self, rows: Ints, *, align: int = 1) -> Floats:
        """Return the share of multiply-accumulates that rows keep, with channels rounded up to multiples of ``align``."""
        return np.asarray(self.shares(rows, aligns=(align,))[0][..., 1])

    def shares(self, rows: Ints, *, aligns: Sequence[int]) -> list[Floats]:
        """Return what rows keep of the dense model's cost on paper, one array of shape ``(..., 8)`` an alignment.

        The columns: layers that are there at all; multiply-accumulates (a convolution's output channels rounded up to packs of
        the alignment, its input channels to steps of it); activations written by convolutions for convolutions, by convolutions
        for other layers, and by the others, each of all of its kind; activations read; weights read; and activations written by
        convolutions whose channels fill no whole packs, which a runtime has to repack. All at once, for a search asks for them
        hundreds of times a trial. What a transformer's stem hands over is little beside what its blocks write, yet is turned
        round, normalised and added to, and is what is left once they are gone: with one share of all that is written, such
        networks were missed by 10 to 40 %.

        Source: ONNX Runtime's blocked convolutions (NCHWc), and our own measurement of 209 random networks of three kinds: formula
        alone within 1.3 to 3.5 % (median) where rounded inputs, written activations and weights gave 3.5 to 6.
        """
        lost = (self._channels - rows[..., : len(self.groups)]).astype(float)
        out, into = self._out_channels - lost @ self._out.T, self._in_channels - lost @ self._in.T
        gone = (1 - rows[..., len(self.groups) :]).astype(float) @ self._inside.T
        present = (gone == 0).astype(float)
        kept_out, kept_in = out / self._out_channels * present, into / self._in_channels
        layers = present.mean(axis=-1)
        plain = [
            *(kept_out @ share for share in self._write_shares_by_kind),
            (kept_in * present) @ self._read_shares,
            (kept_out * kept_in) @ self._weight_shares,
        ]
        found = []
        for align in aligns:
            work = self._product(out, into, align) / self._dense_work(align) * present
            loose = present * ((out % align != 0) & self._is_packed)
            found.append(np.stack([layers, work @ self._macs_shares, *plain, loose @ self._write_shares], axis=-1))
        return found

    def _dense_work(self, align: int) -> Floats:
        """Return rounded output times rounded input channels of every dense layer."""
        if align not in self._dense_works:
            out, into = self._out_channels.astype(float), self._in_channels.astype(float)
            self._dense_works[align] = self._product(out, into, align)
        return self._dense_works[align]

    def _product(self, out: Floats, into: Floats, align: int) -> Floats:
        """Return output times input channels of every layer, as a runtime of an alignment computes them."""
        packed = _packed(out, align) * _rounded(into, align)
        return packed if self._is_packed.all() else np.where(self._is_packed, packed, out * into)

    def work_of_columns(self) -> Floats:
        """Return the share of all multiply-accumulates that each group or block takes part in, shape ``(columns,)``."""
        touched = np.hstack([((self._out + self._in) > 0).astype(float), self._inside])
        return np.asarray(self._macs @ touched / (float(self._macs.sum()) or 1.0))


def _shares(parts: Floats) -> Floats:
    return np.asarray(parts / (float(parts.sum()) or 1.0))


def _packed(channels: Floats, align: int) -> Floats:
    return np.asarray(np.ceil(channels / align) * align)


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
