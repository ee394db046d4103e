"""The parsers of what comes from outside, each as a function of bytes that may raise our errors and nothing else.

A target also asserts what must hold of what it accepts. ``SEEDS`` are good inputs, from which an engine finds the rest.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from api.body import parse_json, parse_yaml, validated
from api.checks.kinds import check_file
from api.guard import is_harmless, name_of_host, netloc_of_origin
from api.plausible import check_outcome
from api.routes.jobs import LabelFilter, labels_of
from client.sse import read_messages
from db.pages import moment_in_token, read_page_token
from domain.access import TokenRequest
from domain.artifact import ArtifactKind
from domain.errors import Invalid
from domain.job import JobSpec
from domain.measurement import MeasurementRequest
from domain.messages import HeartbeatRequest, JoinRequest, OutcomeMessage
from domain.ncnn_file import pack as pack_ncnn
from domain.ncnn_file import read_graph as read_ncnn
from domain.openvino_file import pack as pack_openvino
from domain.openvino_file import read_graph as read_openvino
from tests.unit.api.messages import BASELINE, CANDIDATE, FAILED, SPEC, file_of, measured
from tests.unit.api.test_access import JOINING

Target = Callable[[bytes], None]

MODELS = (JobSpec, JoinRequest, HeartbeatRequest, OutcomeMessage, TokenRequest)
LABEL = TypeAdapter(LabelFilter)
ASKED = MeasurementRequest(runtime="onnxruntime", baseline=file_of(BASELINE), candidates=(file_of(CANDIDATE),))


def json_body(data: bytes) -> None:
    """A JSON body, then every model a body can be."""
    value = parse_json(data)
    json.dumps(value, allow_nan=False).encode("utf-8")  # what was taken can be stored
    _models(value)


def yaml_body(data: bytes) -> None:
    """A YAML body: a job."""
    value = parse_yaml(data)
    json.dumps(value, allow_nan=False).encode("utf-8")
    spec = validated(JobSpec, value)
    assert validated(JobSpec, spec.model_dump(mode="json")) == spec


def cursor(data: bytes) -> None:
    """A page token."""
    text = data.decode("latin-1")
    for kinds in ((str, str), (int,)):
        try:
            after = read_page_token("jobs", text, *kinds)
        except Invalid:
            continue
        assert after is None or [type(part) for part in after] == list(kinds)
        if after is not None and kinds == (str, str):
            moment_in_token(after[0])


def label_filter(data: bytes) -> None:
    """A filter by label, as it stands in a query."""
    texts = data.decode("utf-8", "surrogateescape").split("&")[:20]
    for text in texts:
        try:
            LABEL.validate_python(text)
        except ValidationError:
            return
    found = labels_of(texts)
    assert all("\x00" not in key for key in found)


def host_and_origin(data: bytes) -> None:
    """The Host and Origin headers: what is let through as harmless has no dot, or is an address."""
    text = data.decode("latin-1")
    host, _, origin = text.partition("\n")
    name = name_of_host(host)
    if is_harmless(name) and "." in name:
        assert all(part.isdigit() or ":" in name for part in name.split(".")), name
    netloc_of_origin(origin)


def event_stream(data: bytes) -> None:
    """What a client reads of a server it does not know yet."""
    for message in read_messages(data.decode("utf-8", "replace").splitlines()):
        assert message.data is not None


def npz(data: bytes) -> None:
    """An uploaded data set."""
    _file(data, ArtifactKind.DATA)


def weights(data: bytes) -> None:
    """Uploaded safetensors."""
    _file(data, ArtifactKind.WEIGHTS)


def weights_header(data: bytes) -> None:
    """The same, with the bytes as the header: the length before them is right."""
    _file(struct.pack("<Q", len(data)) + data + b"\0" * 8, ArtifactKind.WEIGHTS)


def npy_header(data: bytes) -> None:
    """The header of an array inside an npz whose zip is whole."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train_inputs.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data) & 0xFFFF) + data)
    _file(file.getvalue(), ArtifactKind.DATA)


def onnx(data: bytes) -> None:
    """An uploaded ONNX file, as the API looks at it."""
    _file(data, ArtifactKind.ONNX)


def onnx_reader(data: bytes) -> None:
    """The same, as the builder's limited child reads it."""
    from pruning.from_onnx.reading import BadOnnx, read_graph

    try:
        read_graph(data, frees_batch=True)
    except BadOnnx as error:
        raise Invalid(str(error)) from error


def ncnn(data: bytes) -> None:
    """An uploaded ncnn artifact."""
    _file(data, ArtifactKind.NCNN)


def ncnn_graph(data: bytes) -> None:
    """The text inside one."""
    graph = read_ncnn(data.decode("ascii", "replace"))
    assert graph.inputs and graph.outputs


def openvino(data: bytes) -> None:
    """An uploaded OpenVINO artifact."""
    _file(data, ArtifactKind.OPENVINO)


def openvino_graph(data: bytes) -> None:
    """The XML inside one."""
    assert read_openvino(data).weights_bytes >= 0


def _models(value: object) -> None:
    for model in MODELS:
        try:
            found = validated(model, value)
        except Invalid as error:
            assert error.fields
            continue
        if isinstance(found, OutcomeMessage):
            check_outcome(ASKED, found.outcome)


@cache
def _folder() -> Path:
    # In memory where there is such a place: a fuzzer writes thousands of files a second.
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    return Path(tempfile.mkdtemp(prefix="pruneloop-fuzz-", dir=place))


def _file(data: bytes, kind: ArtifactKind) -> None:
    path = _folder() / "file"
    path.write_bytes(data)
    check_file(path, kind)


TARGETS: dict[str, Target] = {
    function.__name__: function
    for function in (
        *(json_body, yaml_body, cursor, label_filter, host_and_origin, event_stream),
        *(npz, npy_header, weights, weights_header, onnx, onnx_reader),
        *(ncnn, ncnn_graph, openvino, openvino_graph),
    )
}


def run(target: Target, data: bytes) -> bool:
    """Run a target; True where it took the input. Whatever is no error of ours gets out."""
    try:
        target(data)
    except Invalid:
        return False
    return True


def seeds() -> dict[str, list[bytes]]:
    """Return good inputs for each target."""
    from db.pages import write_page_token
    from tests.unit.api.test_uploads import DATA, NCNN, ONNX, OPENVINO, WEIGHTS

    bodies = [
        *(json.dumps(body).encode() for body in (SPEC, JOINING, {"attempt": 1, "outcome": measured()})),
        *(
            json.dumps(body).encode()
            for body in ({"attempt": 1, "outcome": FAILED}, {"name": "ci", "scopes": ["read"]})
        ),
    ]
    graph = "7767517\n2 2\nInput in 0 1 input 0=4\nReLU relu 1 1 input output\n"
    xml = b'<net><layers><layer type="Parameter"/><layer type="Const"><data offset="0" size="4"/></layer>' + (
        b'<layer type="Result"/></layers></net>'
    )
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3)}\n"
    return {
        "json_body": bodies,
        "yaml_body": [json.dumps(SPEC).encode(), b"model: {name: a}\ndata: {name: b}\ntargets:\n  - {speedup: 2}\n"],
        "cursor": [
            write_page_token("jobs", ["2026-11-01T00:00:00+00:00", "job_1"]).encode(),
            write_page_token("jobs", [7]).encode(),
        ],
        "label_filter": [b"team=vision&stage", b"a.b/c=1"],
        "host_and_origin": [b"127.0.0.1:8420\nhttp://127.0.0.1:8420", b"[::1]:1\nnull", b"box\nhttps://box"],
        "event_stream": [b"retry: 2000\n: hello\n\nid: 7\nevent: job.state\ndata: {}\n\n"],
        "npz": [DATA],
        "npy_header": [header],
        "weights": [WEIGHTS],
        "weights_header": [b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'],
        "onnx": [ONNX, _small_onnx()],
        "onnx_reader": [_small_onnx()],
        "ncnn": [NCNN, pack_ncnn(graph, b"\0" * 8)],
        "ncnn_graph": [graph.encode()],
        "openvino": [OPENVINO, pack_openvino(xml, b"\0" * 4)],
        "openvino_graph": [xml],
    }


def _small_onnx() -> bytes:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    ends = (value("x", TensorProto.FLOAT, ["n", 2]), value("z", TensorProto.FLOAT, ["n", 2]))
    graph = helper.make_graph(nodes, "g", [ends[0]], [ends[1]], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
