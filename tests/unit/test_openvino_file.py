"""The OpenVINO container: what is taken apart on a device comes from elsewhere, and is not believed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from domain.openvino_file import WEIGHTS, XML, BadOpenVinoFile, check, pack, read_graph, unpack

GRAPH = b"""<?xml version="1.0"?>
<net name="net" version="11"><layers>
<layer id="0" name="input" type="Parameter" version="opset1"><data shape="1,4" element_type="f32"/></layer>
<layer id="1" name="weight" type="Const" version="opset1"><data element_type="f32" shape="1" offset="8" size="4"/></layer>
<layer id="2" name="output" type="Result" version="opset1"/>
</layers><edges/></net>"""
DATA = bytes(range(12))


def zipped(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def test_what_is_packed_is_unpacked_and_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    file = pack(GRAPH, DATA)
    assert file == pack(GRAPH, DATA)
    graph = unpack(file, tmp_path)
    assert (tmp_path / XML).read_bytes() == GRAPH
    assert (tmp_path / WEIGHTS).read_bytes() == DATA
    assert graph.layer_types == ["Parameter", "Const", "Result"]
    (tmp_path / "file").write_bytes(file)
    assert check(tmp_path / "file") == graph


BOMB = b"""<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><net name="&b;"/>"""


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "no openvino artifact"),
        (zipped((XML, GRAPH)), "holds model.xml and model.bin and no more"),
        (zipped((XML, GRAPH), (WEIGHTS, DATA), ("../elsewhere", b"x")), "and no more"),
        (zipped((XML, GRAPH), (WEIGHTS, DATA), compression=zipfile.ZIP_DEFLATED), "compressed"),
        (zipped((XML, BOMB), (WEIGHTS, DATA)), "document type"),
        (zipped((XML, GRAPH[:-9]), (WEIGHTS, DATA)), "cannot be read"),
        (zipped((XML, b"<html/>"), (WEIGHTS, DATA)), "no OpenVINO IR"),
        (zipped((XML, b"<net>" + 70 * b"<a>" + 70 * b"</a>" + b"</net>"), (WEIGHTS, DATA)), "nested"),
        (zipped((XML, b"<net/>"), (WEIGHTS, DATA)), "no input or no output"),
        (zipped((XML, GRAPH.replace(b'"8"', b'"-8"')), (WEIGHTS, DATA)), "no place"),
        (zipped((XML, GRAPH.replace(b'"8"', b'"9"')), (WEIGHTS, DATA)), "ends at byte 13"),
        (pack(GRAPH, DATA).replace(DATA, DATA[::-1]), "CRC"),
    ],
)
def test_what_is_none_is_refused_and_nothing_lands_elsewhere(tmp_path: Path, file: bytes, reason: str) -> None:
    place = tmp_path / "in" / "here"
    place.mkdir(parents=True)
    with pytest.raises(BadOpenVinoFile, match=reason) as caught:
        unpack(file, place)
    assert caught.value.code == "bad_openvino"
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {XML, WEIGHTS}


def test_weights_that_are_too_short_are_not_packed() -> None:
    with pytest.raises(BadOpenVinoFile, match="ends at byte 12"):
        pack(GRAPH, DATA[:-1])
    assert read_graph(GRAPH).weights_bytes == 12
