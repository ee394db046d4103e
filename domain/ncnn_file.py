"""The ncnn artifact: ncnn's two files in one, a zip without compression of exactly ``model.param`` and ``model.bin``.

``unzip FILE.ncnn`` gives the pair that ncnn's own ``load_param`` and ``load_model`` take. The graph is text and names its inputs
and outputs as the model's ONNX file does; each ``Input`` layer says the size of one sample (``0`` = w, ``1`` = h, ``11`` = d,
``2`` = c, as ncnn does), so that a file can be run without its check.

What a device unpacks comes from elsewhere, so nothing of it is believed: two names and no other, so no path; stored, so a member
is as large as what is there; limits on both; checksums; and the graph's counts and links are checked before ncnn, which trusts
its files, sees them.
"""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from domain.errors import Invalid
from domain.stored_zip import StoredZip

PARAM, WEIGHTS = "model.param", "model.bin"
MAX_PARAM_BYTES = 4 << 20  # a line of 100 bytes a layer: forty thousand layers
MAX_WEIGHTS_BYTES = 1 << 30
MAGIC = "7767517"
SIZES = ("2", "11", "1", "0")  # of an Input layer: c, d, h, w, in the order of numpy's axes
NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,200}")  # ncnn reads at most 255 characters
LARGEST_SIZE = 1 << 16


class BadNcnnFile(Invalid):
    """The file is not such a zip, or what it holds is no graph."""

    default_code = "bad_ncnn"


_ZIP = StoredZip("An ncnn artifact", "ncnn", {PARAM: MAX_PARAM_BYTES, WEIGHTS: MAX_WEIGHTS_BYTES}, BadNcnnFile)


@dataclass(frozen=True)
class NcnnGraph:
    """Inputs with the shape of one sample, outputs, and the types of the layers, in the file's order."""

    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    layer_types: tuple[str, ...]


def pack(param: str, weights: bytes) -> bytes:
    """Return the artifact of a graph and its weights.

    Raises:
        BadNcnnFile: Where they would not be unpacked again.
    """
    text = param.encode("ascii", errors="replace")
    read_graph(param)
    return _ZIP.pack({PARAM: text, WEIGHTS: weights})


def check(file: Path) -> NcnnGraph:
    """Return an artifact's graph, its checksums not looked at but its graph's.

    Raises:
        BadNcnnFile: Where it is not one.
    """
    with file.open("rb") as opened:
        return _opened(opened, None)


def unpack(file: Path | bytes, folder: Path) -> NcnnGraph:
    """Write an artifact's two files, ``model.param`` and ``model.bin``, into a folder that exists, and return its graph.

    Raises:
        BadNcnnFile: Where it is not one; part of it may then lie in the folder.
    """
    if isinstance(file, bytes):
        return _opened(io.BytesIO(file), folder)
    with file.open("rb") as opened:
        return _opened(opened, folder)


def read_graph(param: str) -> NcnnGraph:
    """Return what a ``.param`` text says.

    Raises:
        BadNcnnFile: Where counts, names, links or sizes do not hold.
    """
    lines = [line for line in param.splitlines() if line.strip()]
    if len(lines) < 3 or lines[0].strip() != MAGIC:
        raise BadNcnnFile(f"{PARAM} does not begin with {MAGIC}; export the model again.")
    layers, blobs = _numbers(lines[1].split(), 2)
    if layers != len(lines) - 2:
        raise BadNcnnFile(f"{PARAM} says {layers} layers and holds {len(lines) - 2}; export the model again.")
    inputs: dict[str, tuple[int, ...]] = {}
    made: dict[str, None] = {}
    used: set[str] = set()
    types = []
    for number, line in enumerate(lines[2:]):
        kind, _, read, written, rest = _layer(line, number)
        for name in read:
            if name not in made or name in used:
                raise BadNcnnFile(f"Layer {number} of {PARAM} reads {name}, which is not there for it.")
            used.add(name)
        for name in written:
            if name in made:
                raise BadNcnnFile(f"Layer {number} of {PARAM} makes {name} again.")
            made[name] = None
        if kind == "Input":
            inputs |= {name: _shape(rest, number) for name in written}
        types.append(kind)
    if blobs != len(made):
        raise BadNcnnFile(f"{PARAM} says {blobs} blobs and holds {len(made)}; export the model again.")
    outputs = tuple(name for name in made if name not in used)
    if not inputs or not outputs or set(outputs) & set(inputs):
        raise BadNcnnFile(f"{PARAM} has no input or no output; export the model again.")
    return NcnnGraph(inputs, outputs, tuple(types))


def rename(param: str, names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> str:
    """Return a graph with blobs called otherwise, and the sizes of its inputs written down.

    Args:
        param: A ``.param`` text as the converter gives it.
        names: Old name -> new name.
        shapes: New name of an input -> shape of one sample, one to four axes.

    Raises:
        BadNcnnFile: Where a line is no layer.
    """
    lines = [line for line in param.splitlines() if line.strip()]
    written = lines[:2]
    for number, line in enumerate(lines[2:]):
        kind, name, read, made, rest = _layer(line, number)
        read, made = ([names.get(blob, blob) for blob in blobs] for blobs in (read, made))
        if kind == "Input":
            rest = _sizes(shapes[made[0]])
        written.append(" ".join([kind, name, str(len(read)), str(len(made)), *read, *made, *rest]))
    return "\n".join(written) + "\n"


def _opened(file: BinaryIO, folder: Path | None) -> NcnnGraph:
    with _ZIP.opened(file) as (archive, members):
        text = archive.read(members[PARAM])
        graph = read_graph(text.decode("ascii"))
        if folder is not None:
            (folder / PARAM).write_bytes(text)
            with archive.open(members[WEIGHTS]) as packed, (folder / WEIGHTS).open("wb") as bare:
                shutil.copyfileobj(packed, bare, 1 << 20)
        return graph


def _layer(line: str, number: int) -> tuple[str, str, list[str], list[str], list[str]]:
    """Return (type, name, blobs read, blobs made, parameters) of a layer's line."""
    words = line.split()
    read, made = _numbers(words[2:4], 2)
    blobs = words[4 : 4 + read + made]
    if len(blobs) != read + made or not all(NAME.fullmatch(word) for word in (*words[:2], *blobs)):
        raise BadNcnnFile(f"Layer {number} of {PARAM} is no layer; export the model again.")
    return words[0], words[1], blobs[:read], blobs[read:], words[4 + read + made :]


def _numbers(words: list[str], count: int) -> list[int]:
    if len(words) != count or not all(word.isdecimal() and len(word) < 7 for word in words):
        raise BadNcnnFile(f"{PARAM} holds no counts where they belong; export the model again.")
    return [int(word) for word in words]


def _shape(words: list[str], number: int) -> tuple[int, ...]:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    sizes = [given[key] for key in SIZES if given.get(key, "0") != "0"]
    if not sizes or not all(size.isdecimal() and 0 < int(size) <= LARGEST_SIZE for size in sizes):
        raise BadNcnnFile(f"The input of layer {number} of {PARAM} has no size; export the model again.")
    return tuple(int(size) for size in sizes)


def _sizes(shape: tuple[int, ...]) -> list[str]:
    keys = {1: ("0",), 2: ("1", "0"), 3: ("2", "1", "0"), 4: SIZES}[len(shape)]
    return sorted(f"{key}={size}" for key, size in zip(keys, shape, strict=True))
