"""Is a file an npz of plain arrays? The zip's directory and each array's header are read, never an array, never a pickle.

Source: the NPY format, numpy.lib.format; the reader is ours so that the API needs no numpy and no pickle is in reach.
"""

from __future__ import annotations

import ast
import re
import struct
import zipfile
from pathlib import Path

from domain.errors import FieldProblem, Invalid
from domain.stored_zip import BROKEN, is_zip

MAX_MEMBERS = 64
MAX_UNPACKED_BYTES = 16 * 1024**3
MAX_NPY_HEADER_BYTES = 10_000  # numpy's own limit
REQUIRED = "train_inputs"
ARRAY_NAMES = (REQUIRED, "train_labels", "val_inputs", "val_labels", "test_inputs", "test_labels")

# As numpy writes. The others unpack by code that allocates what the file asks for.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_PLAIN_DTYPE = re.compile(r"^[<>|=]?(?P<kind>[biufc?])(?P<bytes>\d{0,2})$")


def check_npz(path: Path) -> None:
    """Check an npz of numeric arrays. Raises Invalid ``bad_data``, or ``pickle_refused`` for an array of objects."""
    if not is_zip(path):
        raise _bad("it is not a zip file, or it is cut short")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive)
    except BROKEN as error:
        raise _bad("its zip structure is broken, or the upload is cut short") from error


def _check_members(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise _bad(f"it has {len(members)} members; at most {MAX_MEMBERS} are taken")
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise _bad("it unpacks to more than 16 GiB")
    samples: dict[str, int] = {}
    for member in members:
        if not member.filename.endswith(".npy"):
            raise _bad(f"its member {member.filename!a} is not an .npy array")
        if member.flag_bits & 1:
            raise _bad(f"its member {member.filename!a} is encrypted")
        if member.compress_type not in COMPRESSIONS:
            raise _bad(f"its member {member.filename!a} is compressed otherwise than numpy does")
        name = member.filename.removesuffix(".npy")
        if name in samples:
            raise _bad(f"the array {name!a} stands in it twice")
        samples[name] = _check_array(archive, member, name)
    if REQUIRED not in samples:
        problem = FieldProblem(REQUIRED, "is missing; name the arrays " + ", ".join(ARRAY_NAMES))
        raise Invalid(f"The npz has no array `{REQUIRED}`.", code="bad_data", fields=[problem])
    for split in ("train", "val", "test"):
        inputs, labels = samples.get(f"{split}_inputs"), samples.get(f"{split}_labels")
        if labels is not None and inputs != labels:
            problem = FieldProblem(f"{split}_labels", f"has {labels} samples where the inputs have {inputs or 'none'}")
            raise Invalid("Inputs and labels of a split must agree.", code="bad_data", fields=[problem])


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> int:
    """Return the length of an array's first axis, from its header."""
    with archive.open(member) as file:
        magic = file.read(8)
        if magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
            raise _bad(f"its member {name!a} is not an .npy array")
        width, layout = (2, "<H") if magic[6] == 1 else (4, "<I")
        length_bytes = file.read(width)
        if len(length_bytes) < width:
            raise _bad(f"the array {name!a} is cut short")
        (header_bytes,) = struct.unpack(layout, length_bytes)
        if header_bytes > MAX_NPY_HEADER_BYTES:
            raise _bad(f"the header of the array {name!a} is too long")
        raw = file.read(header_bytes)
    try:
        header = ast.literal_eval(raw.decode("latin-1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise _bad(f"the header of the array {name!a} cannot be read") from error
    if not isinstance(header, dict):
        raise _bad(f"the header of the array {name!a} cannot be read")
    item_bytes = _item_bytes(header.get("descr"), name)
    shape = header.get("shape")
    if not isinstance(shape, tuple) or not shape or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise _bad(f"the array {name!a} has no axis of samples")
    size_bytes = item_bytes
    for extent in shape:
        size_bytes *= extent
    if member.file_size != 8 + width + header_bytes + size_bytes:
        raise _bad(f"the array {name!a} does not have the size that its shape says")
    return int(shape[0])


def _item_bytes(descr: object, name: str) -> int:
    if (isinstance(descr, str) and "O" in descr) or isinstance(descr, list):
        raise Invalid(
            f"The array {name!a} holds Python objects, which numpy stores as a pickle, so it is refused unread. "
            "Store plain numeric arrays: numpy.savez(path, train_inputs=array.astype('float32'), ...).",
            code="pickle_refused",
        )
    match = _PLAIN_DTYPE.match(descr) if isinstance(descr, str) else None
    if match is None:
        raise _bad(f"the array {name!a} is not numeric")
    return int(match["bytes"] or 1)


def _bad(why: str) -> Invalid:
    return Invalid(
        f"This is not a whole npz file of plain arrays: {why}. Write it with numpy.savez(path, train_inputs=..., ...).",
        code="bad_data",
        metadata={"why": why},
    )
