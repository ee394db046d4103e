"""A .tflite file is looked through before LiteRT, which believes it, is given it."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema

from domain.litert_file import BadLiteRtFile, check, read_graph

FILES = Path(__file__).parents[1] / "contract" / "files"
GOOD = (FILES / "small-fp32.tflite").read_bytes()


def test_a_good_file_is_told_by_its_parts() -> None:
    graph = check(FILES / "small-fp32.tflite")
    assert graph.subgraphs == 1
    assert graph.operators >= 4
    assert graph.tensors > graph.operators
    assert 4 * (8 * 9 + 8 * 8 * 9 + 8 * 36 * 10) <= graph.weights_bytes < len(GOOD)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_files_too_with_smaller_weights(precision: str) -> None:
    assert check(FILES / f"small-{precision}.tflite").weights_bytes < 0.7 * read_graph(GOOD).weights_bytes


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no LiteRT file"),
        (b"\x80\x04 a pickle", "no LiteRT file"),
        (b"PK\x03\x04TFL4", "no LiteRT file"),
        (b"\x00\x00\x00\x00TFL3", "lies outside"),
        (b"\xff\xff\xff\x7fTFL3", "lies outside"),
        (bytes(4) + b"TFL3" + bytes(400), "outside|version"),
        (GOOD[: len(GOOD) // 2], "lies outside"),
        (GOOD[:-200], "lies outside"),
    ],
)
def test_what_is_none_is_refused_by_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadLiteRtFile, match=reason):
        read_graph(data)


def test_a_custom_operator_is_refused_by_its_name() -> None:
    table = _first_code(GOOD)
    # Its builtin code becomes CUSTOM: in the older field of one byte, and in the newer one.
    changed = bytearray(GOOD)
    vtable = table - struct.unpack_from("<i", GOOD, table)[0]
    size = struct.unpack_from("<H", GOOD, vtable)[0]
    for field, layout in ((0, "<b"), (3, "<i")):
        at = 4 + 2 * field
        offset = struct.unpack_from("<H", GOOD, vtable + at)[0] if at < size else 0
        if offset:
            struct.pack_into(layout, changed, table + offset, 32)
    with pytest.raises(BadLiteRtFile, match="custom operator"):
        read_graph(bytes(changed))


def test_whatever_byte_is_changed_nothing_else_than_a_refusal_comes_of_it() -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(3000):
        changed = bytearray(GOOD)
        place = rng.randrange(len(GOOD))
        changed[place : place + 4] = rng.randbytes(4)
        try:
            read_graph(bytes(changed))
        except BadLiteRtFile:
            refused += 1
    assert refused > 30


def test_weights_behind_the_graph_are_counted_and_must_lie_in_the_file() -> None:
    data = _with_weights_behind(GOOD)
    assert read_graph(data).weights_bytes == read_graph(GOOD).weights_bytes
    with pytest.raises(BadLiteRtFile, match="lies outside"):
        read_graph(data[:-1])


def _with_weights_behind(data: bytes) -> bytes:
    """Return a file with its largest buffer moved behind the graph, as the converter writes large files."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data))
    largest = max(model.buffers, key=lambda buffer: 0 if buffer.data is None else len(buffer.data))
    weights, largest.data = bytes(largest.data), None
    largest.size = len(weights)
    largest.offset = 1 << 20  # first to learn how long the graph is
    largest.offset = len(_packed(model))
    return _packed(model) + weights


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _first_code(data: bytes) -> int:
    def u32(place: int) -> int:
        return int(struct.unpack_from("<I", data, place)[0])

    root = u32(0)
    vtable = root - struct.unpack_from("<i", data, root)[0]
    at = root + struct.unpack_from("<H", data, vtable + 4 + 2)[0]
    vector = at + u32(at)
    return vector + 4 + u32(vector + 4)
