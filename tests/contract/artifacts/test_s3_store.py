"""A bucket keeps the contract, against a server of the S3 protocol that the tests start; and what only a bucket can do wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from db.s3 import Bucket, S3ArtifactStore
from domain.artifact import ArtifactKind
from domain.errors import Invalid, NotFound, Unavailable
from tests.contract.artifacts.contract import BODY, ArtifactStoreContract


@pytest.fixture(scope="module")
def endpoint_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    made = boto3.client("s3", endpoint_url=endpoint_url, region_name="us-east-1")
    yield made
    made.close()


@pytest.fixture
def bucket(endpoint_url: str, client: Any, request: pytest.FixtureRequest) -> Bucket:
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    client.create_bucket(Bucket=name)
    return Bucket.of(f"s3://{name}/team/models?endpoint_url={endpoint_url}&region=us-east-1")


@pytest.fixture
def store(bucket: Bucket, tmp_path: Path) -> S3ArtifactStore:
    return S3ArtifactStore(bucket, tmp_path / "local")


def key_of(digest: str) -> str:
    name = digest.removeprefix("sha256:")
    return f"team/models/{name[:2]}/{name[2:]}"


class TestS3ArtifactStore(ArtifactStoreContract):
    """Everything every store must do."""


def test_another_host_reads_it_too(store: S3ArtifactStore, bucket: Bucket, client: Any, tmp_path: Path) -> None:
    ref = store.put_bytes(BODY, ArtifactKind.ONNX)
    assert [one["Key"] for one in client.list_objects_v2(Bucket=bucket.name)["Contents"]] == [key_of(ref.digest)]
    elsewhere = S3ArtifactStore(bucket, tmp_path / "elsewhere")
    assert elsewhere.local_path(ref.digest).read_bytes() == BODY
    client.delete_object(Bucket=bucket.name, Key=key_of(ref.digest))
    assert elsewhere.local_path(ref.digest).read_bytes() == BODY, "a copy that is here is not fetched again"
    with pytest.raises(NotFound):
        elsewhere.read(ref.digest)


def test_bytes_that_changed_in_the_bucket_are_never_handed_out(
    store: S3ArtifactStore, bucket: Bucket, client: Any, tmp_path: Path
) -> None:
    ref = store.put_bytes(BODY, ArtifactKind.ONNX)
    client.put_object(Bucket=bucket.name, Key=key_of(ref.digest), Body=BODY[::-1])
    elsewhere = S3ArtifactStore(bucket, tmp_path / "elsewhere")
    for look in (store.read, elsewhere.read, elsewhere.local_path):
        with pytest.raises(Unavailable) as caught:
            look(ref.digest)
        assert caught.value.code == "artifact_corrupt"
    assert not list((tmp_path / "elsewhere").glob("[0-9a-f][0-9a-f]/*")), "nothing of it stays here"
    store.put_bytes(BODY, ArtifactKind.ONNX)
    assert elsewhere.read(ref.digest) == BODY, "storing it again mends it"


def test_a_local_copy_gone_bad_is_fetched_anew(store: S3ArtifactStore) -> None:
    ref = store.put_bytes(BODY, ArtifactKind.ONNX)
    store.local_path(ref.digest).write_bytes(b"bad")
    assert store.local_path(ref.digest).read_bytes() == BODY


def test_local_copies_used_longest_ago_make_room(bucket: Bucket, tmp_path: Path) -> None:
    store = S3ArtifactStore(bucket, tmp_path / "local", local_max_bytes=2500)
    first, second = (store.put_bytes(bytes([n]) * 1000, ArtifactKind.ONNX) for n in range(2))
    for age_s, ref in ((7200, second), (3600, first)):
        os.utime(store.local_path(ref.digest), (time.time() - age_s,) * 2)
    third = store.put_bytes(bytes([2]) * 1000, ArtifactKind.ONNX)
    kept = {path.parent.name + path.name for path in (tmp_path / "local").glob("[0-9a-f][0-9a-f]/*")}
    assert kept == {ref.digest.removeprefix("sha256:") for ref in (first, third)}
    assert store.local_path(second.digest).read_bytes() == bytes([1]) * 1000


def test_a_bucket_that_is_not_there_or_not_ours_says_so(endpoint_url: str, client: Any, tmp_path: Path) -> None:
    missing = S3ArtifactStore(Bucket("none", "", endpoint_url, "us-east-1"), tmp_path / "a")
    nobody = S3ArtifactStore(Bucket("none", "", "http://127.0.0.1:9", "us-east-1"), tmp_path / "b")
    for store in (missing, nobody):
        with pytest.raises(Unavailable) as caught:
            store.put_bytes(b"x", ArtifactKind.DATA)
        assert caught.value.code == "artifact_store_unavailable"


@pytest.mark.parametrize("url", ["http://bucket", "s3://", "s3://bucket?endpiont_url=x"])
def test_a_url_that_names_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Bucket.of(url)
    assert caught.value.code == "bad_artifact_url"
