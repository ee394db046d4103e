"""Is a file safetensors? Eight bytes of length, a JSON header, then the tensors, without gap or overlap.

Source: the format's own text, huggingface.co/docs/safetensors, section "Format".
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from domain.errors import Invalid

MAX_HEADER_BYTES = 16 * 1024 * 1024
BITS_OF_DTYPE = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


def check_weights(path: Path) -> None:
    """Check a safetensors header against the file's size. Raises Invalid ``bad_weights``."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _bad("it is shorter than a header")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(MAX_HEADER_BYTES, size_bytes - 8):
            raise _bad("its header would be longer than the file, or than 16 MiB")
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _bad("its header is not JSON") from error
    if not isinstance(header, dict):
        raise _bad("its header is not an object")
    spans = [_span(name, entry) for name, entry in header.items() if name != "__metadata__"]
    if not spans:
        raise _bad("it holds no tensor")
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _bad("its tensors leave a gap or overlap")
        end = stop
    if end != size_bytes - 8 - header_bytes:
        raise _bad("its tensors do not end where the file ends: the upload may be cut short")


def _span(name: str, entry: object) -> tuple[int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise _bad(f"the entry of tensor {name!a} is incomplete")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS_OF_DTYPE:
        raise _bad(f"tensor {name!a} has the unknown type {dtype!a}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _bad(f"tensor {name!a} has no valid shape or place")
    bits = BITS_OF_DTYPE[dtype]
    for extent in shape:
        bits *= extent
    if offsets[1] - offsets[0] != bits // 8:
        raise _bad(f"tensor {name!a} does not have the size that its shape says")
    return offsets[0], offsets[1]


def _are_counts(value: object) -> bool:
    if not isinstance(value, list) or len(value) > 32:
        return False
    return all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**48 for item in value)


def _bad(why: str) -> Invalid:
    return Invalid(
        f"This is not a whole safetensors file: {why}. Write it with safetensors.torch.save_file(state_dict, path).",
        code="bad_weights",
        metadata={"why": why},
    )
