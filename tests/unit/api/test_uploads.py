"""What is uploaded is what it says it is, or it is refused unread; nothing refused is kept."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

from domain.artifact import digest_of
from domain.measurement import MeasurementRequest
from domain.ncnn_file import pack
from domain.openvino_file import pack as pack_openvino
from domain.work import WorkState
from tests.unit.api.conftest import MAX_UPLOAD_BYTES, World
from tests.unit.api.fakes import DEVICE_TOKEN, OTHER_DEVICE_TOKEN
from tests.unit.api.messages import file_of, measurement


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(start: int = 0, stop: int = 8, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [start, stop], **changes}


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


def zip_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return file.getvalue()


GRAPH = b"\x12\x03abc"  # a name
ONNX = b"\x08\x0a" + field(8, b"\x10\x11") + field(7, GRAPH)
OPENVINO = pack_openvino(b'<net><layers><layer type="Parameter"/><layer type="Result"/></layers></net>', b"")
NCNN = pack("7767517\n2 2\nInput in 0 1 input 0=4\nReLU relu 1 1 input output\n", b"")
INPUTS = np.zeros((4, 1, 2, 2), np.float32)
LABELS = np.zeros(4, np.int64)
DATA = npz(train_inputs=INPUTS, train_labels=LABELS)
WEIGHTS = safetensors({"a": tensor(), "__metadata__": {"k": "v"}}, b"\0" * 8)
# A header of 128 bytes begins with 0x80, as a pickle does.
LIKE_A_PICKLE = safetensors(json.dumps({"a": tensor()}).encode().ljust(0x0280), b"\0" * 8)
PICKLE = b"\x80\x04\x95\x0b\x00\x00\x00"

GOOD = {
    "onnx": ("onnx", ONNX),
    "ncnn": ("ncnn", NCNN),
    "openvino": ("openvino", OPENVINO),
    "npz": ("data", DATA),
    "folder of images": ("data", zip_of(train__cat__1_dot_png=b"any bytes: builders look")),
    "csv": ("data", b"a,b\n1,2\n"),
    "parquet": ("data", b"PAR1" + b"\0" * 20 + b"PAR1"),
    "npz with every split": (
        "data",
        npz(train_inputs=INPUTS, val_inputs=INPUTS, val_labels=LABELS, test_inputs=INPUTS[:2], test_labels=LABELS[:2]),
    ),
    "compressed npz": (
        "data",
        (lambda file: (np.savez_compressed(file, train_inputs=INPUTS), file.getvalue())[1])(io.BytesIO()),
    ),
    "safetensors": ("weights", WEIGHTS),
    "safetensors that begins like a pickle": ("weights", LIKE_A_PICKLE),
}

BAD = {
    "empty": ("onnx", b"", "empty_file"),
    "text as onnx": ("onnx", b"hello world", "bad_onnx"),
    "onnx cut short": ("onnx", ONNX[:-1], "bad_onnx"),
    "onnx without graph": ("onnx", b"\x08\x0a" + field(8, b"\x10\x11"), "bad_onnx"),
    "onnx with two graphs": ("onnx", ONNX + field(7, GRAPH), "bad_onnx"),
    "onnx with an empty graph": ("onnx", b"\x08\x0a" + field(8, b"\x10\x11") + field(7, b""), "bad_onnx"),
    "onnx with a tail": ("onnx", ONNX + b"\xff\xff\xff", "bad_onnx"),
    "onnx that claims exabytes": ("onnx", b"\x08\x0a\x3a\xff\xff\xff\xff\xff\xff\xff\x7f", "bad_onnx"),
    "endless varint": ("onnx", b"\xff" * 40, "bad_onnx"),
    "text as ncnn": ("ncnn", b"hello world", "bad_ncnn"),
    "ncnn cut short": ("ncnn", NCNN[:-1], "bad_ncnn"),
    "weights as ncnn": ("ncnn", WEIGHTS, "bad_ncnn"),
    "ncnn as openvino": ("openvino", NCNN, "bad_openvino"),
    "openvino cut short": ("openvino", OPENVINO[:-1], "bad_openvino"),
    "pickle as onnx": ("onnx", PICKLE, "pickle_refused"),
    "pickle as weights": ("weights", PICKLE, "pickle_refused"),
    "torch.save as weights": ("weights", zip_of(model__data_dot_pkl=PICKLE), "pickle_refused"),
    "torch.save as data": ("data", zip_of(model__data_dot_pkl=PICKLE), "pickle_refused"),
    "zip that leads outside": ("data", zip_of(**{".._dot_/x_dot_csv".replace("_dot_/", "/"): b"a\n"}), "bad_data"),
    "zip with a pickle": ("data", zip_of(model_dot_pkl=b"x", a_dot_png=b"x"), "pickle_refused"),
    "zip of nothing": ("data", zip_of(_dot_DS_Store=b"x"), "bad_data"),
    "parquet cut short": ("data", b"PAR1" + b"\0" * 20, "bad_data"),
    "text in no known encoding": ("data", b"a,b\n\xff\xfe\n", "bad_data"),
    "a picture alone": ("data", b"\x89PNG\r\n\x1a\n\0\0", "bad_data"),
    "objects in npz": ("data", npz(train_inputs=np.array([{"a": 1}], dtype=object)), "pickle_refused"),
    "structured npz": ("data", npz(train_inputs=np.zeros(2, [("a", "f4"), ("b", "O")])), "pickle_refused"),
    "text in npz": ("data", npz(train_inputs=np.array(["a", "b"])), "bad_data"),
    "npz without train_inputs": ("data", npz(x=INPUTS), "bad_data"),
    "labels of another length": ("data", npz(train_inputs=INPUTS, train_labels=LABELS[:3]), "bad_data"),
    "labels without inputs": ("data", npz(train_inputs=INPUTS, val_labels=LABELS), "bad_data"),
    "npz cut short": ("data", DATA[:-30], "bad_data"),
    "npz of a scalar": ("data", npz(train_inputs=np.float32(1)), "bad_data"),
    "zip of text": ("data", zip_of(train_inputs_dot_npy=b"hello"), "bad_data"),
    "zip with a stranger": ("data", zip_of(readme_dot_txt=b"hello"), "bad_data"),
    "npy that claims more than it has": (
        "data",
        zip_of(
            train_inputs_dot_npy=b"\x93NUMPY\x01\x00"
            + struct.pack("<H", 60)
            + b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999,)}".ljust(60)
        ),
        "bad_data",
    ),
    "npy with code for a header": (
        "data",
        zip_of(
            train_inputs_dot_npy=b"\x93NUMPY\x01\x00" + struct.pack("<H", 40) + b"__import__('os').getcwd()".ljust(40)
        ),
        "bad_data",
    ),
    "plain npy": ("data", b"\x93NUMPY\x01\x00", "bad_data"),
    "weights of seven bytes": ("weights", b"1234567", "bad_weights"),
    "header longer than the file": ("weights", struct.pack("<Q", 2**40) + b"{}", "bad_weights"),
    "header not JSON": ("weights", safetensors(b"nope"), "bad_weights"),
    "header a list": ("weights", safetensors([]), "bad_weights"),
    "no tensor": ("weights", safetensors({}), "bad_weights"),
    "deep header": ("weights", safetensors(b"[" * 100_000), "bad_weights"),
    "tensor outside": ("weights", safetensors({"a": tensor(0, 80, shape=[20])}, b"\0" * 8), "bad_weights"),
    "overlap": ("weights", safetensors({"a": tensor(), "b": tensor(4, 12)}, b"\0" * 12), "bad_weights"),
    "gap": ("weights", safetensors({"a": tensor(4, 12)}, b"\0" * 12), "bad_weights"),
    "unknown dtype": ("weights", safetensors({"a": tensor(dtype="F4")}, b"\0" * 8), "bad_weights"),
    "dtype a list": ("weights", safetensors({"a": tensor(dtype=[])}, b"\0" * 8), "bad_weights"),
    "negative shape": ("weights", safetensors({"a": tensor(shape=[-2])}, b"\0" * 8), "bad_weights"),
    "offsets as text": ("weights", safetensors({"a": tensor(data_offsets=["0", "8"])}, b"\0" * 8), "bad_weights"),
    "weights cut short": ("weights", WEIGHTS[:-1], "bad_weights"),
    "a kind the server writes": ("manifest", b"{}", "kind_not_accepted"),
    "an unknown kind": ("virus", b"x", "invalid_input"),
}


@pytest.mark.parametrize(("kind", "body"), GOOD.values(), ids=GOOD.keys())
def test_good_files_are_kept_under_their_digest(world: World, kind: str, body: bytes) -> None:
    answer = world.ask("POST", f"/v1/artifacts?kind={kind}", content=body)
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"digest": digest_of(body), "size_bytes": len(body), "kind": kind}
    assert answer.headers["location"] == f"/v1/artifacts/{digest_of(body)}"
    assert world.ask("GET", answer.headers["location"]).content == body


@pytest.mark.parametrize(("kind", "body", "code"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_by_name(world: World, kind: str, body: bytes, code: str) -> None:
    answer = world.ask("POST", f"/v1/artifacts?kind={kind}", content=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert not world.store.artifacts_by_digest


def test_multipart_works_the_same(world: World) -> None:
    form = {"files": {"file": ("w.safetensors", WEIGHTS)}, "data": {"kind": "weights"}}
    answer = world.ask("POST", "/v1/artifacts", **form)
    assert answer.json() == {"digest": digest_of(WEIGHTS), "size_bytes": len(WEIGHTS), "kind": "weights"}


def test_multipart_without_a_file_names_the_field(world: World) -> None:
    answer = world.ask("POST", "/v1/artifacts", data={"kind": "weights"}, files={"other": ("x", b"y")})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "file")


def test_broken_multipart_is_400(world: World) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = world.ask("POST", "/v1/artifacts?kind=onnx", content=b"nonsense", headers=headers)
    assert answer.status_code in {400, 422}


def test_the_kind_may_be_a_header(world: World) -> None:
    assert world.ask("POST", "/v1/artifacts", content=ONNX, headers={"X-Artifact-Kind": "onnx"}).status_code == 201


def test_a_file_over_the_limit_is_413_and_leaves_nothing(world: World) -> None:
    answer = world.ask("POST", "/v1/artifacts?kind=onnx", content=b"\0" * (MAX_UPLOAD_BYTES + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert not list(world.artifacts.folder.iterdir())


def test_a_stream_without_length_over_the_limit_is_413(world: World) -> None:
    blocks = (b"\0" * 65536 for _ in range(MAX_UPLOAD_BYTES // 65536 + 4))
    assert world.ask("POST", "/v1/artifacts?kind=onnx", content=blocks).status_code == 413


def test_a_file_above_the_limit_of_json_bodies_is_fine(world: World) -> None:
    body = npz(train_inputs=np.zeros((500, 1000), np.float32))
    assert world.ask("POST", "/v1/artifacts?kind=data", content=body).status_code == 201


def test_a_file_that_is_known_by_its_etag_is_not_sent_again(world: World) -> None:
    path = world.ask("POST", "/v1/artifacts?kind=onnx", content=ONNX).headers["location"]
    first = world.ask("GET", path)
    assert first.headers["content-length"] == str(len(ONNX))
    again = world.ask("GET", path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_device_fetches_what_it_measures_while_it_does_and_no_weights_or_data(world: World) -> None:
    files = {"onnx": ONNX, "weights": WEIGHTS, "data": DATA}
    paths = {
        kind: world.ask("POST", f"/v1/artifacts?kind={kind}", content=body).headers["location"]
        for kind, body in files.items()
    }

    def found() -> dict[str, int]:
        return {kind: world.ask("GET", path, token=DEVICE_TOKEN).status_code for kind, path in paths.items()}

    assert found() == {"onnx": 403, "weights": 403, "data": 403}
    request = MeasurementRequest(
        runtime="onnxruntime",
        baseline=file_of(digest_of(ONNX)),
        candidates=(file_of(digest_of(WEIGHTS)), file_of(digest_of(DATA))),
    )
    held = measurement(request=request, state=WorkState.LEASED, device_id="dev1", attempt=1)
    world.store.measurements_by_id["m1"] = held
    assert found() == {"onnx": 200, "weights": 403, "data": 403}
    assert world.ask("GET", paths["onnx"], token=OTHER_DEVICE_TOKEN).status_code == 403
    world.store.measurements_by_id["m1"] = held.model_copy(update={"state": WorkState.DONE})
    assert found()["onnx"] == 403
