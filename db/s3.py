"""Artifacts in a bucket of S3, or of anything that speaks its protocol; a folder on this host keeps copies of what was used.

An object is one PUT: it is there whole or not at all, and its bytes are checked by the server against the SHA-256 sent along. What
comes back is verified here again. Readers get a file of the local folder, which is a ``FileArtifactStore`` of its own.
"""

from __future__ import annotations

import base64
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from db.artifacts import FileArtifactStore, absent, corrupt
from domain.artifact import ArtifactKind, ArtifactRef, digest_of, is_digest
from domain.errors import Invalid, NotFound, PruneloopError, Unavailable

BLOCK_BYTES = 1 << 20
IN_USE_S = 600.0  # a local copy used within this time is not thrown away: somebody may be about to open it
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


@dataclass(frozen=True)
class Bucket:
    """``s3://bucket/prefix?endpoint_url=...&region=...``; keys come from where the AWS tools look for them."""

    name: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None

    @classmethod
    def of(cls, url: str) -> Bucket:
        """Read a URL. Raises Invalid ``bad_artifact_url``."""
        parts = urlsplit(url)
        known = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if parts.scheme != "s3" or not parts.netloc or set(known) - {"endpoint_url", "region"}:
            raise Invalid(
                f"{url!r} names no bucket; write s3://bucket/prefix?endpoint_url=https://host&region=name.",
                code="bad_artifact_url",
            )
        prefix = parts.path.strip("/")
        return cls(parts.netloc, f"{prefix}/" if prefix else "", known.get("endpoint_url"), known.get("region"))


class S3ArtifactStore:
    """``domain.ports.ArtifactStore`` in a bucket.

    Args:
        bucket: Where.
        local: Folder of copies; any number of processes of this host may share it.
        local_max_bytes: What the copies may take; those used longest ago go first.

    Raises:
        Unavailable: ``s3_missing`` where boto3 is not installed.
    """

    def __init__(self, bucket: Bucket, local: Path, *, local_max_bytes: int = 20 * 1024**3) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise Unavailable("Artifacts in S3 need boto3: pip install 'pruneloop[s3]'.", code="s3_missing") from error
        self._bucket = bucket
        self._local = FileArtifactStore(local)
        self._folder = local
        self._max_bytes = local_max_bytes
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=bucket.endpoint_url,
            region_name=bucket.region,
            config=Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 4, "mode": "standard"}),
        )

    def put_file(self, path: Path, kind: ArtifactKind) -> ArtifactRef:
        """Store a copy of a file and return its reference. Storing the same bytes twice is one object."""
        return self._upload(self._local.put_file(path, kind))

    def put_bytes(self, data: bytes, kind: ArtifactKind) -> ArtifactRef:
        """Store bytes and return their reference."""
        return self._upload(self._local.put_bytes(data, kind))

    def put_stream(self, chunks: Iterator[bytes], kind: ArtifactKind, *, max_bytes: int) -> ArtifactRef:
        """Store a stream. Raises Invalid ``too_large`` past ``max_bytes``, leaving nothing behind."""
        return self._upload(self._local.put_stream(chunks, kind, max_bytes=max_bytes))

    def read(self, digest: str) -> bytes:
        """Return the bytes as the bucket has them, verified. Raises NotFound, Unavailable ``artifact_corrupt``."""
        with _errors(digest):
            data = bytes(self._client.get_object(Bucket=self._bucket.name, Key=self._key(digest))["Body"].read())
        if digest_of(data) != digest:
            raise corrupt(digest, self._place(digest))
        return data

    def local_path(self, digest: str) -> Path:
        """Return a verified local file, fetched where it is not here yet. Raises NotFound, Unavailable ``artifact_corrupt``."""
        try:
            path = self._local.local_path(digest)
        except (NotFound, Unavailable):
            path = self._fetch(digest)
        with suppress(FileNotFoundError):
            os.utime(path)
        return path

    def exists(self, digest: str) -> bool:
        """Whether the object is there; its bytes are not looked at."""
        if not is_digest(digest):
            return False
        try:
            with _errors(digest):
                self._client.head_object(Bucket=self._bucket.name, Key=self._key(digest))
        except NotFound:
            return False
        return True

    def remove(self, digest: str, *, unused_for_s: float) -> bool:
        """Delete an object stored longer ago than that; return whether it is gone now."""
        with _errors(digest):
            found = self._client.head_object(Bucket=self._bucket.name, Key=self._key(digest))
            if time.time() - found["LastModified"].timestamp() < unused_for_s:
                return False
            self._client.delete_object(Bucket=self._bucket.name, Key=self._key(digest))
        with suppress(NotFound):
            self._local.remove(digest, unused_for_s=0.0)
        return True

    def _upload(self, ref: ArtifactRef) -> ArtifactRef:
        """Put the local copy into the bucket, also where an object is there: it may have gone bad, and is in use again now."""
        raw = base64.b64encode(bytes.fromhex(ref.digest.removeprefix("sha256:"))).decode()
        with _errors(ref.digest), self._local.local_path(ref.digest).open("rb") as body:
            self._client.put_object(Bucket=self._bucket.name, Key=self._key(ref.digest), Body=body, ChecksumSHA256=raw)
        self._make_room()
        return ref

    def _fetch(self, digest: str) -> Path:
        handle, name = tempfile.mkstemp(dir=self._folder / "tmp")
        try:
            with os.fdopen(handle, "wb") as file, _errors(digest):
                body = self._client.get_object(Bucket=self._bucket.name, Key=self._key(digest))["Body"]
                for block in body.iter_chunks(BLOCK_BYTES):
                    file.write(block)
            ref = self._local.put_file(Path(name), ArtifactKind.DATA)
        finally:
            Path(name).unlink(missing_ok=True)
        if ref.digest != digest:
            self._local.remove(ref.digest, unused_for_s=0.0)
            raise corrupt(digest, self._place(digest))
        self._make_room()
        return self._local.local_path(digest)

    def _make_room(self) -> None:
        """Throw local copies away, those used longest ago first, until the rest fits."""
        files = []
        for path in self._folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        too_many_bytes = sum(size for _, size, _ in files) - self._max_bytes
        for used_at, size_bytes, path in sorted(files):
            if too_many_bytes <= 0 or time.time() - used_at < IN_USE_S:
                return
            path.unlink(missing_ok=True)
            too_many_bytes -= size_bytes

    def _key(self, digest: str) -> str:
        if not is_digest(digest):
            raise absent(digest)
        name = digest.removeprefix("sha256:")
        return f"{self._bucket.prefix}{name[:2]}/{name[2:]}"

    def _place(self, digest: str) -> str:
        return f"s3://{self._bucket.name}/{self._key(digest)}"


@contextmanager
def _errors(digest: str) -> Iterator[None]:
    """Tell what the bucket or the way to it does wrong in our own words."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except PruneloopError:
        raise
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in MISSING:
            raise absent(digest) from error
        raise _away(error) from error
    except (BotoCoreError, OSError) as error:
        raise _away(error) from error


def _away(error: Exception) -> Unavailable:
    return Unavailable(
        f"The artifact store did not answer as it should: {error}. Check its URL, the keys and the network.",
        code="artifact_store_unavailable",
    )
