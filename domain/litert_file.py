"""The LiteRT artifact: a ``.tflite`` flatbuffer, looked through before LiteRT is given it.

LiteRT maps a file and follows its offsets; one that points elsewhere takes the process down. So on a device, and at the API's door,
nothing of it is believed: every table and vector read here lies inside the file, every index names something that is there, weights
lie in the file itself, and operators are LiteRT's own: a custom one needs a library that no agent has.

Source: field numbers of schema.fbs, github.com/google-ai-edge/LiteRT, tflite/converter/schema/schema.fbs (Apache-2.0); layout as in
"FlatBuffers binary format", flatbuffers.dev.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from domain.errors import Invalid

IDENTIFIER = b"TFL3"
VERSION = 3
MAX_BYTES = (1 << 31) - 1  # what its 32-bit offsets reach
MAX_ENTRIES = 200_000  # of any vector of tables
CUSTOM = 32  # BuiltinOperator.CUSTOM


class BadLiteRtFile(Invalid):
    """The file is no whole LiteRT model, or wants what no agent has."""

    default_code = "bad_litert"


@dataclass(frozen=True)
class LiteRtGraph:
    """Counts of a file's main parts, and the numbers of its operators."""

    subgraphs: int
    tensors: int
    operators: int
    weights_bytes: int
    builtin_codes: tuple[int, ...]


def check(file: Path) -> LiteRtGraph:
    """Return what a file holds.

    Raises:
        BadLiteRtFile: Where it is not one.
    """
    size_bytes = file.stat().st_size
    if size_bytes > MAX_BYTES:
        raise BadLiteRtFile(f"The file has {size_bytes} bytes; at most {MAX_BYTES} are taken.")
    return read_graph(file.read_bytes())


def read_graph(data: bytes) -> LiteRtGraph:
    """Return what the bytes of a file hold.

    Raises:
        BadLiteRtFile: Where they are none.
    """
    if data[4:8] != IDENTIFIER:
        raise BadLiteRtFile("This is no LiteRT file: it does not begin as one; export the model again.")
    try:
        return _graph(_Table(data, _u32(data, 0)))
    except (struct.error, IndexError) as error:
        raise BadLiteRtFile(
            "This is no whole LiteRT file: a part of it lies outside; export the model again."
        ) from error


def _graph(model: _Table) -> LiteRtGraph:
    if model.number(0, "<I") != VERSION:
        raise BadLiteRtFile(f"The file is of version {model.number(0, '<I')}; LiteRT reads {VERSION}.")
    codes = []
    for code in model.tables(1):
        custom, number = code.text(1), max(code.number(0, "<b"), code.number(3, "<i"))
        if custom or number == CUSTOM:
            raise BadLiteRtFile(f"The file uses the custom operator {custom[:60]!a}; export it with LiteRT's own only.")
        codes.append(number)
    buffers = list(model.tables(4))
    # A large file keeps its weights behind the graph, by their place in the file; 0 and 1 there mean that it does not.
    behind = [(buffer.number(1, "<Q"), buffer.number(2, "<Q")) for buffer in buffers]
    if any(start > 1 and start + size > model.size_bytes for start, size in behind):
        raise IndexError
    weights_bytes = sum(buffer.length(0) for buffer in buffers) + sum(size for start, size in behind if start > 1)
    subgraphs = list(model.tables(2))
    if not subgraphs:
        raise BadLiteRtFile("The file holds no graph; export the model again.")
    tensors = operators = 0
    for subgraph in subgraphs:
        own = list(subgraph.tables(0))
        tensors += len(own)
        for tensor in own:
            tensor.length(0)
            _require(tensor.number(2, "<I") < max(1, len(buffers)), "a tensor", "a buffer")
        ends = [*subgraph.numbers(1), *subgraph.numbers(2)]
        _require(all(0 <= index < len(own) for index in ends), "an input or output", "a tensor")
        for node in subgraph.tables(3):
            operators += 1
            _require(node.number(0, "<I") < len(codes), "a node", "an operator")
            used = [*node.numbers(1), *node.numbers(2)]
            _require(all(-1 <= index < len(own) for index in used), "a node", "a tensor")
    return LiteRtGraph(len(subgraphs), tensors, operators, weights_bytes, tuple(codes))


def _require(is_there: bool, what: str, names: str) -> None:
    if not is_there:
        raise BadLiteRtFile(f"In this LiteRT file {what} names {names} that is not there; export the model again.")


class _Table:
    """A flatbuffer's table: fields by their number, each checked to lie in the file."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place
        self._vtable = place - _unpacked("<i", data, place)
        if self._vtable < 0 or place < 4:
            raise IndexError
        self._size = _unpacked("<H", data, self._vtable)

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return len(self._data)

    def number(self, field: int, layout: str) -> int:
        """Return a field's number, 0 where it is left out."""
        place = self._field(field)
        return _unpacked(layout, self._data, place) if place else 0

    def text(self, field: int) -> str:
        place = self._vector(field)
        return self._data[place + 4 : place + 4 + self.length(field)].decode("utf-8", "replace") if place else ""

    def length(self, field: int, width: int = 1) -> int:
        """Return how many entries of so many bytes a vector has, all of them inside the file."""
        place = self._vector(field)
        if not place:
            return 0
        count = _u32(self._data, place)
        if place + 4 + count * width > len(self._data):
            raise IndexError
        return count

    def numbers(self, field: int) -> tuple[int, ...]:
        """Return a vector of 32-bit numbers."""
        place = self._vector(field)
        return struct.unpack_from(f"<{self.length(field, 4)}i", self._data, place + 4) if place else ()

    def tables(self, field: int) -> Iterator[_Table]:
        place = self._vector(field)
        count = self.length(field, 4)
        if count > MAX_ENTRIES:
            raise BadLiteRtFile(f"A part of the file has {count} entries; at most {MAX_ENTRIES} are taken.")
        for number in range(count):
            at = place + 4 + 4 * number
            yield _Table(self._data, at + _u32(self._data, at))

    def _vector(self, field: int) -> int:
        place = self._field(field)
        return place + _u32(self._data, place) if place else 0

    def _field(self, field: int) -> int:
        at = 4 + 2 * field
        if at + 2 > self._size:
            return 0
        offset = _unpacked("<H", self._data, self._vtable + at)
        return self._place + offset if offset else 0


def _u32(data: bytes, place: int) -> int:
    return _unpacked("<I", data, place)


def _unpacked(layout: str, data: bytes, place: int) -> int:
    if place < 0:
        raise IndexError
    (found,) = struct.unpack_from(layout, data, place)
    return int(found)
