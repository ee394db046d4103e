"""Is a file plausibly an ONNX ModelProto? Its top-level protobuf fields are walked; nothing below them is read.

Source: field numbers of ModelProto, github.com/onnx/onnx, onnx/onnx.proto (Apache-2.0); wire format as in protobuf.dev.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from domain.errors import Invalid

MAX_FIELDS = 100_000
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


def check_onnx(path: Path) -> None:
    """Check the top level of an ONNX file against its size. Raises Invalid ``bad_onnx``."""
    size_bytes = path.stat().st_size
    seen: set[int] = set()
    with path.open("rb") as file:
        for _ in range(MAX_FIELDS):
            position = file.tell()
            if position == size_bytes:
                break
            field = _skip_field(file, size_bytes)
            if field == GRAPH and GRAPH in seen:
                raise _bad("it has two graphs")
            seen.add(field)
        else:
            raise _bad("it has far too many parts")
    if GRAPH not in seen:
        raise _bad("it has no graph")
    if IR_VERSION not in seen or OPSET_IMPORT not in seen:
        raise _bad("it names no IR version or no operator set")


def _skip_field(file: BinaryIO, size_bytes: int) -> int:
    tag = _varint(file)
    field, wire_type = tag >> 3, tag & 7
    if WIRE_TYPE_OF_FIELD.get(field) != wire_type:
        raise _bad("it is not ONNX, or it is damaged")
    if wire_type == VARINT:
        _varint(file)
        return field
    length = _varint(file)
    if length > size_bytes - file.tell():
        raise _bad("it is cut short")
    if field == GRAPH and length == 0:
        raise _bad("its graph is empty")
    file.seek(length, os.SEEK_CUR)
    return field


def _varint(file: BinaryIO) -> int:
    value = 0
    for index in range(10):
        byte = file.read(1)
        if not byte:
            raise _bad("it is cut short")
        value |= (byte[0] & 0x7F) << (7 * index)
        if byte[0] < 0x80:
            return value
    raise _bad("it is not ONNX, or it is damaged")


def _bad(why: str) -> Invalid:
    return Invalid(
        f"This is not a whole ONNX file: {why}. Export it anew, with its weights inside the file, and upload it whole.",
        code="bad_onnx",
        metadata={"why": why},
    )
