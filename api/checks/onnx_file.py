"""Is a file plausibly an ONNX ModelProto that is whole in itself? Its protobuf messages are walked; no tensor is read.

Looked at are the lengths of everything down to the tensors, and that no tensor lies in another file, whose name the sender could
choose. What the operators mean is for the builder's limited child to say.

Source: field numbers, github.com/onnx/onnx, onnx/onnx.proto (Apache-2.0); wire format as in protobuf.dev.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from domain.errors import Invalid

MAX_FIELDS = 500_000  # tens of thousands of operators; a second of looking
MAX_DEPTH = 40  # graphs in attributes of nodes in graphs ...
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

IR_VERSION, GRAPH, OPSET_IMPORT = 1, 7, 8
WIRE_TYPE_OF_FIELD = {
    IR_VERSION: VARINT,
    2: BYTES,  # producer_name
    3: BYTES,  # producer_version
    4: BYTES,  # domain
    5: VARINT,  # model_version
    6: BYTES,  # doc_string
    GRAPH: BYTES,
    OPSET_IMPORT: BYTES,
    14: BYTES,  # metadata_props
    20: BYTES,  # training_info
    25: BYTES,  # functions
    26: BYTES,  # configuration
}

# Message -> number of a field -> the message in it. All others are skipped by their length.
INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {GRAPH: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor


def check_onnx(path: Path) -> None:
    """Check an ONNX file down to its tensors. Raises Invalid ``bad_onnx``, ``external_data``."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        seen: set[int] = set()
        walk = _Walk(data)
        for field, wire_type, start, end in walk.fields(0, len(data)):
            if WIRE_TYPE_OF_FIELD.get(field) != wire_type:
                raise _bad("it is not ONNX, or it is damaged")
            if field == GRAPH and GRAPH in seen:
                raise _bad("it has two graphs")
            if field == GRAPH and start == end:
                raise _bad("its graph is empty")
            seen.add(field)
            if field in INSIDE["model"]:
                walk.message(INSIDE["model"][field], start, end, depth=1)
    if GRAPH not in seen:
        raise _bad("it has no graph")
    if IR_VERSION not in seen or OPSET_IMPORT not in seen:
        raise _bad("it names no IR version or no operator set")


class _Walk:
    """Goes over the fields of messages within one file, and counts them."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._left = MAX_FIELDS

    def message(self, kind: str, start: int, end: int, *, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _bad(f"its graphs lie more than {MAX_DEPTH} deep in one another")
        inside = INSIDE[kind]
        for field, wire_type, first, last in self.fields(start, end):
            if kind == "tensor":
                is_elsewhere = field == DATA_LOCATION and wire_type == VARINT and self._varint(first, end)[0] == 1
                if is_elsewhere or (field == EXTERNAL_DATA and wire_type == BYTES):
                    raise Invalid(
                        "A tensor of this ONNX file lies in another file, which is not taken. "
                        "Save the model with all tensors inside: onnx.save(model, path, save_as_external_data=False).",
                        code="external_data",
                    )
            elif wire_type == BYTES and field in inside:
                self.message(inside[field], first, last, depth=depth + 1)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (number, wire type, start, end) of the fields between two places."""
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise _bad("it has far too many parts")
            tag, first = self._varint(position, end)
            field, wire_type = tag >> 3, tag & 7
            if wire_type == VARINT:
                _, last = self._varint(first, end)
            elif wire_type == BYTES:
                length, first = self._varint(first, end)
                last = first + length
            elif wire_type in {FIXED64, FIXED32}:
                last = first + (8 if wire_type == FIXED64 else 4)
            else:
                raise _bad("it is not ONNX, or it is damaged")
            if last > end:
                raise _bad("it is cut short")
            yield field, wire_type, first, last
            position = last

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """Return a number and where it ends."""
        value = 0
        for index in range(10):
            if position + index >= end:
                raise _bad("it is cut short")
            byte = self._data[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise _bad("it is not ONNX, or it is damaged")


def _bad(why: str) -> Invalid:
    return Invalid(
        f"This is not a whole ONNX file: {why}. Export it anew, with its weights inside the file, and upload it whole.",
        code="bad_onnx",
        metadata={"why": why},
    )
