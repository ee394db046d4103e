"""The ncnn container: what is taken apart on a device comes from elsewhere, and is not believed."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest

from domain.ncnn_file import PARAM, WEIGHTS, BadNcnnFile, check, pack, read_graph, rename, unpack

GRAPH = """7767517
3 3
Input in0 0 1 in0 0=4
ReLU relu_0 1 1 in0 1
InnerProduct fc_0 1 1 1 out0 0=2 2=8
"""
DATA = bytes(36)


def zipped(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def refused(tmp_path: Path, file: bytes, match: str) -> None:
    place = tmp_path / "in" / "here"
    place.mkdir(parents=True)
    with pytest.raises(BadNcnnFile, match=match) as caught:
        unpack(file, place)
    assert caught.value.code == "bad_ncnn"
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {PARAM, WEIGHTS}
    assert not list(tmp_path.glob("*.*"))


def test_what_is_packed_is_unpacked_and_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    file = pack(GRAPH, DATA)
    assert file == pack(GRAPH, DATA)
    graph = unpack(file, tmp_path)
    assert (tmp_path / PARAM).read_text() == GRAPH
    assert (tmp_path / WEIGHTS).read_bytes() == DATA
    assert graph.inputs == {"in0": (4,)}
    assert graph.outputs == ("out0",)
    assert graph.layer_types == ("Input", "ReLU", "InnerProduct")
    (tmp_path / "file").write_bytes(file)
    assert check(tmp_path / "file") == graph


def test_blobs_go_by_the_models_names_and_the_input_says_its_size() -> None:
    renamed = rename(GRAPH, {"in0": "input", "out0": "output"}, {"input": (3, 5, 7)})
    graph = read_graph(renamed)
    assert graph.inputs == {"input": (3, 5, 7)}
    assert graph.outputs == ("output",)
    assert renamed.splitlines()[2] == "Input in0 0 1 input 0=7 1=5 2=3"


@pytest.mark.parametrize("name", ["../model.bin", "/model.bin", "model.bin/", "a/model.bin", "MODEL.BIN", "evil.py"])
def test_other_names_are_refused_and_nothing_is_written_outside(tmp_path: Path, name: str) -> None:
    refused(tmp_path, zipped((PARAM, GRAPH.encode()), (name, DATA)), "and no more")


def test_more_or_fewer_members_are_refused(tmp_path: Path) -> None:
    good = (PARAM, GRAPH.encode()), (WEIGHTS, DATA)
    refused(tmp_path / "more", zipped(*good, ("extra", b"")), "and no more")
    refused(tmp_path / "fewer", zipped(good[0]), "and no more")
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = zipped(*good, good[0])
    refused(tmp_path / "twice", twice, "and no more")


def test_a_bomb_is_refused_before_it_is_blown_up(tmp_path: Path) -> None:
    bomb = zipped((PARAM, GRAPH.encode()), (WEIGHTS, bytes(50 << 20)), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    refused(tmp_path, bomb, "compressed")
    assert not list(tmp_path.rglob(WEIGHTS))


def test_a_size_that_is_not_there_is_refused(tmp_path: Path) -> None:
    file = pack(GRAPH, DATA)
    swollen = file.replace(struct.pack("<II", 36, 36), struct.pack("<II", 1 << 29, 1 << 29))
    assert swollen != file
    refused(tmp_path / "far", swollen, "overlap|no ncnn artifact")
    refused(
        tmp_path / "huge", file.replace(struct.pack("<II", 36, 36), struct.pack("<II", 1 << 31, 1 << 31)), "at most"
    )


def test_a_graph_too_long_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, zipped((PARAM, GRAPH.encode() + b" " * (5 << 20)), (WEIGHTS, DATA)), "at most")


@pytest.mark.parametrize("near", [b"relu_0", b"0=2 2=8", b"weights", b"model.param", b"model.bin", b"PK\x05\x06"])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_flipped_bit_is_seen(tmp_path: Path, near: bytes, is_last: bool) -> None:
    file = bytearray(pack(GRAPH, b"weights".center(36)))
    file[file.rindex(near) if is_last else file.index(near)] ^= 0x04
    refused(tmp_path, bytes(file), ".")


@pytest.mark.parametrize("cut", [0, 10, 100, 200, -1])
def test_a_file_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    refused(tmp_path, pack(GRAPH, DATA)[:cut], ".")


@pytest.mark.parametrize(
    ("was", "becomes", "match"),
    [
        ("7767517", "7767518", "does not begin"),
        ("3 3\n", "9 3\n", "says 9 layers"),
        ("3 3\n", "3 9\n", "says 9 blobs"),
        ("3 3\n", "-3 3\n", "no counts"),
        ("ReLU relu_0 1 1", "ReLU relu_0 1000 1", "no layer"),
        ("ReLU relu_0 1 1", "ReLU relu_0 99999999999 1", "no counts"),
        ("fc_0 1 1 1 out0", "fc_0 1 1 7 out0", "not there"),
        ("fc_0 1 1 1 out0", "fc_0 1 1 1 in0", "again"),
        ("0=4", "0=0", "no size"),
        ("0=4", "0=-4", "no size"),
        ("0=4", "0=999999999", "no size"),
        ("relu_0", "x" * 300, "no layer"),
    ],
)
def test_a_graph_that_does_not_hold_together_is_refused(was: str, becomes: str, match: str) -> None:
    assert GRAPH.count(was) >= 1
    with pytest.raises(BadNcnnFile, match=match):
        read_graph(GRAPH.replace(was, becomes, 1))
