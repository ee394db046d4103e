"""The OpenVINO artifact: an IR's two files in one, a zip without compression of exactly ``model.xml`` and ``model.bin``.

``unzip FILE.openvino`` gives the pair that ``openvino.Core().read_model("model.xml")`` takes. On a device nothing of it is
believed: the XML has no document type, so no entities; it is small; and every constant lies inside the weights. What the layers
mean is OpenVINO's to check.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat

from domain.errors import Invalid
from domain.stored_zip import StoredZip, is_zip

XML, WEIGHTS = "model.xml", "model.bin"
MAX_XML_BYTES = 32 << 20  # a kilobyte a layer: thirty thousand layers
MAX_WEIGHTS_BYTES = 1 << 30
MAX_DEPTH = 64  # bodies of loops are nets inside layers


class BadOpenVinoFile(Invalid):
    """The file is not such a zip, or what it holds is no IR."""

    default_code = "bad_openvino"


_ZIP = StoredZip("An OpenVINO artifact", "openvino", {XML: MAX_XML_BYTES, WEIGHTS: MAX_WEIGHTS_BYTES}, BadOpenVinoFile)


@dataclass
class OpenVinoGraph:
    """The types of the layers in the file's order, and where the last constant ends, in bytes of the weights."""

    layer_types: list[str] = field(default_factory=list)
    weights_bytes: int = 0


def pack(xml: bytes, weights: bytes) -> bytes:
    """Return the artifact of an IR.

    Raises:
        BadOpenVinoFile: Where it would not be unpacked again.
    """
    _require_inside(read_graph(xml), len(weights))
    return _ZIP.pack({XML: xml, WEIGHTS: weights})


def check(file: Path) -> OpenVinoGraph:
    """Return an artifact's graph, the checksum of its weights not looked at.

    Raises:
        BadOpenVinoFile: Where it is not one.
    """
    with file.open("rb") as opened:
        return _opened(opened, None)


def unpack(file: Path | bytes, folder: Path) -> OpenVinoGraph:
    """Write an artifact's two files, ``model.xml`` and ``model.bin``, into a folder that exists, and return its graph.

    Raises:
        BadOpenVinoFile: Where it is not one; part of it may then lie in the folder.
    """
    if isinstance(file, bytes):
        return _opened(io.BytesIO(file), folder)
    with file.open("rb") as opened:
        return _opened(opened, folder)


def is_packed(file: Path) -> bool:
    """Tell whether a file is a zip, as an artifact is and an ONNX file never is."""
    return is_zip(file)


def read_graph(xml: bytes) -> OpenVinoGraph:
    """Return what an IR's XML says.

    Raises:
        BadOpenVinoFile: Where it is no IR, has a document type, or places a constant nowhere.
    """
    graph = OpenVinoGraph()
    path: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if not path and name != "net":
            raise BadOpenVinoFile(f"{XML} is no OpenVINO IR; export the model again.")
        path.append(name)
        if len(path) > MAX_DEPTH:
            raise BadOpenVinoFile(f"{XML} is nested more than {MAX_DEPTH} deep; export the model again.")
        if name == "layer":
            graph.layer_types.append(attributes.get("type", ""))
        elif name == "data" and graph.layer_types[-1:] == ["Const"]:
            place = [attributes.get(key, "") for key in ("offset", "size")]
            if not all(number.isdecimal() and len(number) < 13 for number in place):
                raise BadOpenVinoFile(f"A constant of {XML} has no place in {WEIGHTS}; export the model again.")
            graph.weights_bytes = max(graph.weights_bytes, sum(int(number) for number in place))

    def refuse_doctype(*told: object) -> None:
        raise BadOpenVinoFile(f"{XML} declares a document type, which no IR has; export the model again.")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: path.pop()
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise BadOpenVinoFile(f"{XML} cannot be read ({error}); export the model again.") from error
    if not {"Parameter", "Result"} <= set(graph.layer_types):
        raise BadOpenVinoFile(f"{XML} has no input or no output; export the model again.")
    return graph


def _opened(file: BinaryIO, folder: Path | None) -> OpenVinoGraph:
    with _ZIP.opened(file) as (archive, members):
        xml = archive.read(members[XML])
        graph = read_graph(xml)
        _require_inside(graph, members[WEIGHTS].file_size)
        if folder is not None:
            (folder / XML).write_bytes(xml)
            with archive.open(members[WEIGHTS]) as packed, (folder / WEIGHTS).open("wb") as bare:
                shutil.copyfileobj(packed, bare, 1 << 20)
        return graph


def _require_inside(graph: OpenVinoGraph, weights_bytes: int) -> None:
    if graph.weights_bytes > weights_bytes:
        raise BadOpenVinoFile(
            f"A constant ends at byte {graph.weights_bytes} of {WEIGHTS}, which has {weights_bytes}; export the model again."
        )
