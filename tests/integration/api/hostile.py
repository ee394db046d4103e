"""Files and bodies that nobody should send, made by code: what each is, how it is sent, and how it must be answered."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from domain.ncnn_file import pack as pack_ncnn
from domain.openvino_file import pack as pack_openvino
from tests.unit.api.test_bad_input import INVALID, MALFORMED, MALFORMED_YAML
from tests.unit.api.test_uploads import BAD, DATA, INPUTS, NCNN, OPENVINO, WEIGHTS, npz, safetensors, tensor

MEBIBYTE = 1024 * 1024
JSON = {"Content-Type": "application/json"}
YAML = {"Content-Type": "application/yaml"}
REFUSED = frozenset({400, 413, 415, 422})
LIKE_CSV = {"pickle of protocol 0", "text", "shell script", "python", "yaml aliases"}
PICKLES = {
    "protocol 0": b"cos\nsystem\n(S'true'\ntR.",
    **{f"protocol {n}": bytes([0x80, n]) + b"cposix\nsystem\n(X\x04\x00\x00\x00trueR." for n in (2, 3, 4, 5)},
}


@dataclass(frozen=True)
class Hostile:
    """One request. ``caller`` is whose token it carries; ``statuses`` what may answer it."""

    name: str
    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    caller: str = "admin"
    statuses: frozenset[int] = REFUSED


def corpus() -> list[Hostile]:
    """Return all of them; no name is there twice."""
    found = [*uploads(), *forms(), *bodies(), *jobs_as_yaml(), *queries(), *headers()]
    names = [item.name for item in found]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return found


def small_onnx(*, external: str | None = None) -> bytes:
    """Return a good file; with ``external`` its tensor lies in a file of that name."""
    value = helper.make_tensor_value_info
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    if external is not None:
        weight.data_location = TensorProto.EXTERNAL
        weight.ClearField("float_data")
        entry = weight.external_data.add()
        entry.key, entry.value = "location", external
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [value("x", TensorProto.FLOAT, ["n", 2])], [value("y", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph([node], "g", *ends, [weight])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def zip_of(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED, mode: int | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            if mode is not None:
                info.create_system, info.external_attr = 3, mode << 16
            archive.writestr(info, data)
    return file.getvalue()


def bomb(name: str) -> bytes:
    """Return a kilobyte or so that unpacks to a hundred mebibytes."""
    return zip_of({name: b"\0" * (100 * MEBIBYTE)}, compression=zipfile.ZIP_DEFLATED)


def with_claimed_size(data: bytes, size_bytes: int) -> bytes:
    """Return a zip whose directory claims another size for its first member."""
    at = data.index(b"PK\x01\x02")
    return data[: at + 24] + struct.pack("<I", size_bytes & 0xFFFFFFFF) + data[at + 28 :]


def tar_of(name: str, *, is_link: bool = False) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        if is_link:
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return file.getvalue()


def foreign_files() -> dict[str, bytes]:
    """Files that are of none of the kinds that are taken."""
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that stands in a zip twice
        twice = io.BytesIO()
        with zipfile.ZipFile(twice, "w") as archive:
            for _ in range(2):
                archive.writestr("train_inputs.npy", b"x")
    return {
        **{f"pickle of {name}": data for name, data in PICKLES.items()},
        "torch.save": zip_of({"archive/data.pkl": PICKLES["protocol 2"], "archive/version": b"3\n"}),
        "zip with a pickle among others": zip_of({"model.param": b"7767517\n", "evil.pkl": PICKLES["protocol 4"]}),
        "one byte": b"\0",
        "zeros": b"\0" * 65536,
        "ones": b"\xff" * 65536,
        "a mebibyte of zeros": b"\0" * MEBIBYTE,
        "text": b"hello, world\n" * 100,
        "html": b"<!doctype html><script>alert(1)</script>",
        "elf": b"\x7fELF\x02\x01\x01" + b"\0" * 200,
        "png": b"\x89PNG\r\n\x1a\n" + b"\0" * 200,
        "shell script": b"#!/bin/sh\nrm -rf /\n",
        "python": b"__import__('os').system('true')\n",
        "gzip bomb": gzip.compress(b"\0" * (50 * MEBIBYTE)),
        "tar with a path out": tar_of("../../etc/cron.d/x"),
        "tar with a link": tar_of("model.onnx", is_link=True),
        "zip with a path out": zip_of({"../../../etc/cron.d/x": b"x"}),
        "zip with an absolute path": zip_of({"/etc/cron.d/x": b"x"}),
        "zip with a Windows path": zip_of({"C:\\Windows\\x": b"x"}),
        "zip with a link": zip_of({"model.bin": b"/etc/passwd"}, mode=0o120777),
        "zip with NUL in a name": zip_of({"train_inputs.npy\x00.txt": b"x"}),
        "zip of nothing": zip_of({}),
        "zip of a thousand": zip_of({f"a{n}.npy": b"" for n in range(1000)}),
        "zip of itself": zip_of({"a.npz": zip_of({"b.npz": zip_of({"c.npz": b"x"})})}),
        "zip with a name twice": twice.getvalue(),
        "bomb of train_inputs": bomb("train_inputs.npy"),
        "bomb of model.bin": bomb("model.bin"),
        "bomb of model.xml": bomb("model.xml"),
        "json a hundred thousand deep": b"[" * 100_000,
        "yaml aliases": b"a: &a [x]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (n, n) for n in range(20)),
        "billion laughs": f'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a0 "x">{laughs}]><net>&a9;</net>'.encode(),
        "xml of a file": b'<?xml version="1.0"?><!DOCTYPE n [<!ENTITY x SYSTEM "file:///etc/passwd">]><net>&x;</net>',
        "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
        "length of exabytes": struct.pack("<Q", 2**63) + b"{}",
        "varint without end": b"\x80" * 1000,
    }


def own_files() -> dict[str, list[tuple[str, bytes]]]:
    """Files that nearly are of a kind, by kind."""
    good = {"onnx": small_onnx(), "ncnn": NCNN, "openvino": OPENVINO, "weights": WEIGHTS, "data": DATA}
    found: dict[str, list[tuple[str, bytes]]] = {kind: [] for kind in good}
    for kind, data in good.items():
        cuts = sorted({len(data) * n // 12 for n in range(1, 12)} | {1, len(data) - 1})
        found[kind] += [(f"cut at {at} of {len(data)}", data[:at]) for at in cuts]
    deep = small_onnx()
    for _ in range(60):
        inner = b"\x32" + varint(len(deep)) + deep  # a graph in an attribute in a node in a graph
        attribute = b"\x2a" + varint(len(inner)) + inner
        deep = b"\x0a" + varint(len(attribute)) + attribute
    found["onnx"] += [
        (f"tensors in {place}", small_onnx(external=place))
        for place in ("weights.bin", "../../etc/passwd", "/etc/passwd", "http://evil.example/w")
    ]
    found["onnx"] += [
        ("graphs in graphs", b"\x08\x09\x42\x02\x10\x11\x3a" + varint(len(deep)) + deep),
        ("two million fields", b"\x08\x09\x42\x02\x10\x11\x3a" + varint(4_000_000) + b"\x12\x00" * 2_000_000),
        ("graph longer than the file", b"\x08\x09\x42\x02\x10\x11\x3a\xff\xff\xff\xff\x0f"),
    ]
    objects = np.array([{"a": 1}], dtype=object)
    found["data"] += [
        ("objects", npz(train_inputs=INPUTS, extra=objects)),
        ("complex structure", npz(train_inputs=np.zeros(3, dtype=[("a", "f4"), ("b", "i8")]))),
        ("dates", npz(train_inputs=np.zeros(3, dtype="datetime64[s]"))),
        ("bytes", npz(train_inputs=np.array([b"a", b"bc"]))),
        ("unpacks to more than it may", with_claimed_size(DATA, 2**32 - 2)),
        ("lzma", zip_of({"train_inputs.npy": b"\0" * 5000}, compression=zipfile.ZIP_LZMA)),
        ("bz2", zip_of({"train_inputs.npy": b"\0" * 5000}, compression=zipfile.ZIP_BZIP2)),
        *((f"header {text}", npy(text)) for text in ("{}", "[", "1e999", "{'descr': '<f4'", "(" * 3000, "'" * 900)),
        ("shape of exabytes", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2**40, 2**40)}")),
        ("shape too large", npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**47}, {2**47})}}")),
        ("shape negative", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 8)}")),
        ("shape of Booleans", npy("{'descr': '|b1', 'fortran_order': False, 'shape': (True,)}")),
    ]
    found["weights"] += [
        ("a tensor of zettabytes", safetensors({"a": tensor(0, 2**60, shape=[2**58])})),
        ("forty axes", safetensors({"a": tensor(shape=[1] * 40)}, b"\0" * 8)),
        ("numbers with a point", safetensors({"a": tensor(shape=[2.0])}, b"\0" * 8)),
        ("NaN", safetensors(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', b"\0" * 8)),
        ("Boolean places", safetensors({"a": tensor(data_offsets=[False, 8])}, b"\0" * 8)),
        ("header of ten million", struct.pack("<Q", 10_000_000) + b" " * 10_000_000),
        ("a number of a thousand digits", safetensors(b'{"a": ' + b"9" * 1000 + b"}", b"")),
        ("a number of ten thousand digits", safetensors(b'{"a": ' + b"9" * 10_000 + b"}", b"")),
        ("half a surrogate", safetensors(b'{"\\ud800": []}')),
        ("not UTF-8", safetensors(b'{"\xff\xfe": 1}')),
    ]
    graph = "7767517\n2 2\nInput in 0 1 input 0=4\nReLU relu 1 1 input output\n"
    found["ncnn"] += [
        (name, pack_unchecked("model.param", text, "model.bin"))
        for name, text in {
            "a million layers": "7767517\n999999 2\nInput in 0 1 input 0=4\n",
            "a count with a sign": graph.replace("2 2", "-2 2"),
            "a loop": graph.replace("1 1 input output", "1 1 output output"),
            "a name with a path": graph.replace("relu", "../../x"[:2] + "\\..\\x"),
            "no input": "7767517\n1 1\nReLU relu 0 1 output\n",
            "a size of a million": graph.replace("0=4", "0=1000000"),
            "letters beyond ASCII": graph.replace("relu", "rélu"),
            "a NUL": graph.replace("relu", "re\x00lu"),
            "another magic": graph.replace("7767517", "7767518"),
        }.items()
    ]
    found["ncnn"].append(("a stranger in it", zip_of({"model.param": graph.encode(), "model.bin": b"", "x": b""})))
    xml = '<net><layers><layer type="Parameter"/><layer type="Result"/></layers></net>'
    found["openvino"] += [
        (name, pack_unchecked("model.xml", text, "model.bin"))
        for name, text in {
            "a document type": "<!DOCTYPE net>" + xml,
            "an entity": '<!DOCTYPE net [<!ENTITY x "y">]>' + xml.replace("<layers>", "<layers>&x;"),
            "elements a thousand deep": "<net>" * 1000,
            "not closed": xml[:-6],
            "another root": xml.replace("net>", "ten>"),
            "a constant outside": xml.replace(
                "<layers>", '<layers><layer type="Const"><data offset="0" size="99"/></layer>'
            ),
            "a constant nowhere": xml.replace("<layers>", '<layers><layer type="Const"><data offset="x"/></layer>'),
            "no layers": "<net/>",
            "two roots": xml + xml,
        }.items()
    ]
    assert pack_ncnn(graph, b"") and pack_openvino(xml.encode(), b""), "what is changed above was good"
    return found


def npy(header: str) -> bytes:
    """Return an npz of one array with a header as it is told."""
    text = header.encode()
    return zip_of({"train_inputs.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 64})


def pack_unchecked(name: str, text: str, weights: str) -> bytes:
    return zip_of({name: text.encode(), weights: b"\0" * 8})


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    found = b""
    while number > 0x7F:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def uploads() -> Iterator[Hostile]:
    """Every foreign file under every kind, every near miss under its own."""
    foreign = foreign_files()
    for kind, files in own_files().items():
        for name, data in [*foreign.items(), ("nothing", b""), *files]:
            if kind == "data" and name in LIKE_CSV:
                continue  # lines of text are a table to whoever has not read them; the builder says what is wrong
            yield Hostile(f"{kind}: {name}", "POST", f"/v1/artifacts?kind={kind}", data)
    for name, (kind, data, _) in BAD.items():
        yield Hostile(f"known: {name}", "POST", f"/v1/artifacts?kind={kind}", data)
    for kind in ("", "manifest", "check", "../onnx", "ONNX", "onnx%00", "x" * 60, "%ff"):
        yield Hostile(f"kind {kind!a}", "POST", f"/v1/artifacts?kind={kind}", small_onnx())
    too_large = b"\0" * (17 * MEBIBYTE)
    yield Hostile("a file over the limit", "POST", "/v1/artifacts?kind=onnx", too_large, statuses=frozenset({413}))


def forms() -> Iterator[Hostile]:
    """Multipart bodies."""

    def part(name: str, data: bytes, file: str = "") -> bytes:
        told = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        return b"--b\r\n" + told.encode("utf-8", "surrogatepass") + b"\r\n\r\n" + data + b"\r\n"

    good = part("file", small_onnx(), "../../../etc/passwd")
    cases = {
        "nothing": b"",
        "no end": good,
        "no file": part("kind", b"onnx") + b"--b--\r\n",
        "a file as a field": part("file", b"x") + b"--b--\r\n",
        "two files": good + part("file", b"x", "y") + b"--b--\r\n",
        "a hundred fields": b"".join(part(f"f{n}", b"x") for n in range(100)) + good + b"--b--\r\n",
        "an unknown kind": good + part("kind", b"virus") + b"--b--\r\n",
        "a kind of a mebibyte": good + part("kind", b"x" * MEBIBYTE) + b"--b--\r\n",
        "a field of three mebibytes": part("kind", b"x" * 3 * MEBIBYTE) + good + b"--b--\r\n",
        "a pickle in it": part("file", PICKLES["protocol 4"], "model.onnx") + part("kind", b"onnx") + b"--b--\r\n",
        "a header of a mebibyte": b"--b\r\nX: " + b"x" * MEBIBYTE + b"\r\n\r\nx\r\n--b--\r\n",
        "NULs": b"\0" * 1000,
        "too large": part("file", b"\0" * (17 * MEBIBYTE), "x") + part("kind", b"onnx") + b"--b--\r\n",
    }
    for name, data in cases.items():
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        yield Hostile(f"form: {name}", "POST", "/v1/artifacts", data, headers)
    for name, value in {"no boundary": "", "a boundary of 300": "; boundary=" + "b" * 300}.items():
        yield Hostile(f"form: {name}", "POST", "/v1/artifacts", good, {"Content-Type": "multipart/form-data" + value})


ROUTES: tuple[tuple[str, str, str], ...] = (
    ("POST", "/v1/jobs", "admin"),
    ("POST", "/v1/join_tokens", "admin"),
    ("POST", "/v1/tokens", "admin"),
    ("POST", "/v1/session", "admin"),
    ("POST", "/v1/devices", "join"),
    ("POST", "/v1/devices/OWN/health", "device"),
    ("POST", "/v1/devices/OWN/claim", "device"),
    ("POST", "/v1/devices/OWN/heartbeat", "device"),
    ("POST", "/v1/devices/OWN/pause", "admin"),
    ("PUT", "/v1/measurements/measurement_1/outcome", "device"),
    ("POST", "/v1/measurements/measurement_1/release", "device"),
)
TAKES_NOTHING = ("/v1/join_tokens", "/claim", "/heartbeat", "/pause")


def bodies() -> Iterator[Hostile]:
    """Every malformed body to every route that reads one, wrong types, and jobs that are nearly right."""
    wrong: dict[str, bytes] = {
        "a list": b"[]",
        "a number": b"1",
        "a text": b'"x"',
        "true": b"true",
        "null": b"null",
        "too large": b'{"a": "' + b"x" * (9 * MEBIBYTE) + b'"}',
        "a number too large": b'{"a": 123456789012345678901234567890}',
        "a number beyond any": b'{"a": 1e999}',
        "NUL": b'{"a": "\\u0000"}',
        "half a surrogate": b'{"\\udfff": 1}',
    }
    for method, path, caller in ROUTES:
        for name, data in {**MALFORMED, **wrong}.items():
            if not data and path.endswith(TAKES_NOTHING):
                continue  # an empty body stands for {} there
            yield Hostile(f"{path}: {name}", method, path, data, JSON, caller)
        for media_type in ("text/plain", "application/x-python-pickle", "application/x-www-form-urlencoded"):
            yield Hostile(f"{path}: as {media_type}", method, path, b"a=1", {"Content-Type": media_type}, caller)
    for name, (text, _) in INVALID.items():
        yield Hostile(f"a job: {name}", "POST", "/v1/jobs", text.encode(), JSON)
    for name, value in _odd_values().items():
        for place in ("name", "labels", "model", "data", "targets", "objective", "budget", "levels", "seed"):
            spec: dict[str, Any] = {"model": {"name": "resnet8"}, "data": {"name": "mnist-5k"}, "targets": [{}]}
            yield Hostile(
                f"a job whose {place} is {name}", "POST", "/v1/jobs", json.dumps({**spec, place: value}).encode(), JSON
            )


def _odd_values() -> dict[str, Any]:
    return {
        "a very long list": [[]] * 5000,
        "an object of a thousand": {f"k{n}": None for n in range(1000)},
        "a Boolean": True,
        "minus one": -1.5,
    }


def jobs_as_yaml() -> Iterator[Hostile]:
    more = {
        "a billion laughs": b"a: &a [x,x,x,x]\n"
        + b"".join(b"%c: &%c [*%c,*%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 110)),
        "merge keys": b"a: &a {b: 1}\nc:\n  <<: *a\n",
        "an object of Python": b"!!python/object/new:os.system [true]\n",
        "a name of Python": b"model: !!python/name:os.system\n",
        "a tag": b"model: !evil x\n",
        "binary": b"name: !!binary aGVsbG8=\n",
        "a set": b"name: !!set {a, b}\n",
        "a number in base 60 of NaN": b"targets: .nan\n",
        "too large": b"a: " + b"x" * (300 * 1024),
        "ten thousand brackets": b"[" * 10_000,
        "ten thousand keys": b"".join(b"k%d: 1\n" % n for n in range(10_000)),
        "a directive": b"%YAML 9.9\n---\na: 1\n",
        "an endless quote": b'name: "' + b"x" * 1000,
    }
    for name, data in {**MALFORMED_YAML, **more}.items():
        yield Hostile(f"yaml: {name}", "POST", "/v1/jobs", data, YAML)


def queries() -> Iterator[Hostile]:
    lists = ("/v1/jobs", "/v1/devices", "/v1/tokens", "/v1/audit")
    for path in lists:
        for name, query in {
            "a size below zero": "page_size=-1",
            "a size in words": "page_size=all",
            "a size of five thousand digits": "page_size=" + "9" * 5000,
            "a token of another": "page_token=W10",
            "a token that is no base64": "page_token=%2F%2F..",
            "a token of deep JSON": "page_token=" + "W1tbW1tb" * 40,
            "a token too long": "page_token=" + "a" * 3000,
            "a token with NUL": "page_token=%00",
        }.items():
            yield Hostile(f"{path}: {name}", "GET", f"{path}?{query}")
    for name, query in {
        "a label without a name": "label==x",
        "a label with NUL": "label=a%3Db%00",
        "fifty labels": "&".join(f"label=a{n}" for n in range(50)),
        "a moment without a zone": "created_from=2026-01-01T00:00:00",
        "a moment as a number": "created_from=1e9",
        "a moment beyond time": "created_before=99999-01-01T00:00:00Z",
        "an unknown state": "state=DONE",
    }.items():
        yield Hostile(f"/v1/jobs: {name}", "GET", f"/v1/jobs?{query}")
    for name, path in {
        "NUL": "/v1/jobs/a%00b",
        "a path out": "/v1/jobs/..%2f..%2fetc%2fpasswd",
        "a quote": "/v1/jobs/a'--",
        "ten thousand letters": "/v1/jobs/" + "a" * 10_000,
        "not UTF-8": "/v1/jobs/%ff%fe",
        "a digest of another length": "/v1/artifacts/sha256:abc",
        "a digest with a path": "/v1/artifacts/sha256:..%2f..%2fetc%2fpasswd",
        "a wheel with a path": "/v1/agent/..%2f..%2fsettings.py",
    }.items():
        yield Hostile(f"path: {name}", "GET", path, statuses=REFUSED | {404})


def headers() -> Iterator[Hostile]:
    refused = REFUSED | {401, 403, 421, 431}
    for name, more in {
        "a host of another": {"Host": "evil.example"},
        "a host with a path": {"Host": "evil.example/127.0.0.1"},
        "an origin of another": {"Origin": "http://evil.example"},
        "an origin of nobody": {"Origin": "null"},
        "a bearer of a kilobyte": {"Authorization": "Bearer " + "x" * 1024},
        "a bearer of thirty kilobytes": {"Authorization": "Bearer " + "x" * 30_000},
        "a bearer of nothing": {"Authorization": "Bearer"},
        "another scheme": {"Authorization": "Basic YWRtaW46YWRtaW4="},
        "a key too long": {"Idempotency-Key": "x" * 300},
        "a media type of a kilobyte": {"Content-Type": "application/" + "x" * 1024},
    }.items():
        yield Hostile(f"header: {name}", "POST", "/v1/jobs", b"{}", {**JSON, **more}, statuses=refused)
