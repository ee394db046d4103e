"""What every ArtifactStore must do. Subclass it and give a ``store``; a third party's adapter is tested the same way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.artifact import ArtifactKind, digest_of, digest_of_file
from domain.errors import Invalid, NotFound
from domain.ports import ArtifactStore

BODY = bytes(range(256)) * 5000  # more than one block
UNKNOWN = digest_of(b"nobody stored this")


class ArtifactStoreContract:
    """Mixed into a test class that has a ``store`` fixture."""

    def test_bytes_come_back_under_their_digest(self, store: ArtifactStore) -> None:
        ref = store.put_bytes(BODY, ArtifactKind.ONNX)
        assert (ref.digest, ref.size_bytes, ref.kind) == (digest_of(BODY), len(BODY), ArtifactKind.ONNX)
        assert store.read(ref.digest) == BODY
        assert store.exists(ref.digest)

    def test_no_bytes_are_an_artifact_too(self, store: ArtifactStore) -> None:
        ref = store.put_bytes(b"", ArtifactKind.DATA)
        assert (store.read(ref.digest), ref.size_bytes) == (b"", 0)

    def test_a_file_is_copied_and_the_original_left_alone(self, store: ArtifactStore, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(BODY)
        ref = store.put_file(path, ArtifactKind.ONNX)
        assert path.read_bytes() == BODY
        path.write_bytes(b"changed later")
        assert store.read(ref.digest) == BODY

    def test_a_stream_is_stored_up_to_its_limit(self, store: ArtifactStore) -> None:
        chunks = [BODY[:1000], b"", BODY[1000:]]
        ref = store.put_stream(iter(chunks), ArtifactKind.WEIGHTS, max_bytes=len(BODY))
        assert store.read(ref.digest) == BODY

    def test_a_stream_past_its_limit_leaves_nothing_and_is_not_read_to_the_end(self, store: ArtifactStore) -> None:
        given = 0

        def endless() -> Iterator[bytes]:
            nonlocal given
            while True:
                given += 1
                yield b"x" * 100

        with pytest.raises(Invalid) as caught:
            store.put_stream(endless(), ArtifactKind.DATA, max_bytes=250)
        assert caught.value.code == "too_large"
        assert given <= 4
        for size in (200, 300):
            assert not store.exists(digest_of(b"x" * size))

    def test_a_stream_that_breaks_leaves_nothing(self, store: ArtifactStore) -> None:
        def broken() -> Iterator[bytes]:
            yield b"half"
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            store.put_stream(broken(), ArtifactKind.DATA, max_bytes=1000)
        assert not store.exists(digest_of(b"half"))

    def test_the_same_bytes_twice_are_one_artifact(self, store: ArtifactStore) -> None:
        first = store.put_bytes(BODY, ArtifactKind.ONNX)
        again = store.put_bytes(BODY, ArtifactKind.WEIGHTS)
        assert first.digest == again.digest
        assert again.kind is ArtifactKind.WEIGHTS
        assert store.read(first.digest) == BODY

    def test_a_local_path_holds_the_very_bytes(self, store: ArtifactStore) -> None:
        ref = store.put_bytes(BODY, ArtifactKind.ONNX)
        for _ in range(2):
            assert digest_of_file(store.local_path(ref.digest)) == ref.digest

    @pytest.mark.parametrize("digest", [UNKNOWN, "", "sha256:", "sha256:../../etc/passwd", "md5:abc", UNKNOWN + "\n"])
    def test_what_nobody_stored_is_not_found(self, store: ArtifactStore, digest: str) -> None:
        for look in (store.read, store.local_path):
            with pytest.raises(NotFound):
                look(digest)

    def test_what_is_removed_is_gone_and_may_come_back(self, store: ArtifactStore) -> None:
        ref, other = store.put_bytes(BODY, ArtifactKind.ONNX), store.put_bytes(b"other", ArtifactKind.ONNX)
        assert store.remove(ref.digest, unused_for_s=0.0)
        assert not store.exists(ref.digest) and store.exists(other.digest)
        for look in (store.read, store.local_path):
            with pytest.raises(NotFound):
                look(ref.digest)
        with pytest.raises(NotFound):
            store.remove(ref.digest, unused_for_s=0.0)
        store.put_bytes(BODY, ArtifactKind.ONNX)
        assert store.read(ref.digest) == BODY

    def test_what_was_stored_lately_is_not_removed(self, store: ArtifactStore) -> None:
        ref = store.put_bytes(BODY, ArtifactKind.ONNX)
        assert not store.remove(ref.digest, unused_for_s=3600.0)
        assert store.read(ref.digest) == BODY
