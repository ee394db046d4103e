"""Paths in a job's file: uploaded, replaced by digests, and a missing one named with its field."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.files import kind_of, read_job, with_uploads
from domain.artifact import ArtifactKind, digest_of
from domain.errors import Invalid
from tests.unit.api.conftest import World, routes, world
from tests.unit.api.test_uploads import ONNX
from tests.unit.client.test_client import client_of

__all__ = ["routes", "world"]


def test_a_path_is_seen_from_the_job_s_file_and_becomes_a_digest(world: World, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(ONNX)
    content = b"model: {source: onnx, artifact: model.onnx}\ndata: {name: mnist-5k}\ntargets: [{}]\n"
    with client_of(world) as client:
        spec = read_job(content, tmp_path, client)
        assert isinstance(spec, dict)
        assert spec["model"] == {"source": "onnx", "artifact": digest_of(ONNX)}
        assert client.submit(spec).spec.model.artifact == digest_of(ONNX)


def test_every_place_of_a_file_is_known(tmp_path: Path) -> None:
    for name in ("m.onnx", "w.safetensors", "d.npz"):
        (tmp_path / name).write_bytes(b"x")
    seen: list[tuple[str, ArtifactKind]] = []

    def upload(path: Path, kind: ArtifactKind) -> str:
        seen.append((path.name, kind))
        return "sha256:" + "0" * 64

    spec = {"model": {"artifact": "m.onnx", "weights": "w.safetensors"}, "data": {"artifact": "d.npz"}, "seed": 1}
    changed = with_uploads(spec, tmp_path, upload)
    assert changed is not None and changed["seed"] == 1
    assert seen == [("m.onnx", "onnx"), ("w.safetensors", "weights"), ("d.npz", "data")]
    assert with_uploads(changed, tmp_path, upload) is None


def test_a_missing_file_is_named_with_its_field(world: World, tmp_path: Path) -> None:
    with client_of(world) as client, pytest.raises(Invalid) as caught:
        read_job(b"data: {source: npz, artifact: gone.npz}", tmp_path, client)
    assert [field.field for field in caught.value.fields] == ["data.artifact"]
    assert caught.value.code == "no_such_file"


@pytest.mark.parametrize("content", [b"{", b"[]", b"- 1", b"model: resnet8", b"model: {artifact: 7}"])
def test_what_is_no_job_goes_to_the_server_as_it_is(world: World, tmp_path: Path, content: bytes) -> None:
    with client_of(world) as client:
        assert read_job(content, tmp_path, client) == content


def test_a_name_says_what_a_file_is() -> None:
    assert kind_of(Path("a.ONNX")) is ArtifactKind.ONNX
    with pytest.raises(Invalid, match=r"\.safetensors"):
        kind_of(Path("a.pt"))
