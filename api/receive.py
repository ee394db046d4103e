"""An upload, spooled to a file of its own while it arrives: raw body or multipart, never whole in memory."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Header, Query, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from api.body import limited
from api.checks.kinds import UPLOADABLE_KINDS
from api.deps import Deps
from domain.artifact import ArtifactKind
from domain.errors import FieldProblem, Invalid

BLOCK_BYTES = 1024 * 1024
WRAPPING_BYTES = 64 * 1024  # what multipart adds to a file


@dataclass(frozen=True)
class ReceivedFile:
    """A whole upload on disk, gone again when the request ends."""

    path: Path
    kind: ArtifactKind


async def _received_file(
    request: Request,
    deps: Deps,
    kind: Annotated[
        str | None, Query(max_length=50, description=f"What the file is: {UPLOADABLE_KINDS}. Or the form field `kind`.")
    ] = None,
    x_artifact_kind: Annotated[str | None, Header(max_length=50, description="The same, as a header.")] = None,
) -> AsyncIterator[ReceivedFile]:
    with tempfile.TemporaryDirectory(prefix="pruneloop-upload-") as folder:
        path = Path(folder) / "file"
        given = kind or x_artifact_kind
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            given = await _spool_form(request, path, given, deps.max_upload_bytes)
        else:
            _kind_of(given)
            await _spool_body(request, path, deps.max_upload_bytes)
        yield ReceivedFile(path=path, kind=_kind_of(given))


async def _spool_body(request: Request, path: Path, max_bytes: int) -> None:
    size_bytes = 0
    with path.open("wb") as file:
        waiting = bytearray()
        async for chunk in request.stream():
            size_bytes += len(chunk)
            _refuse_large(size_bytes, max_bytes)
            waiting += chunk
            if len(waiting) >= BLOCK_BYTES:
                block, waiting = waiting, bytearray()
                await to_thread.run_sync(file.write, block)
        await to_thread.run_sync(file.write, waiting)


async def _spool_form(request: Request, path: Path, kind: str | None, max_bytes: int) -> str | None:
    try:
        whole = limited(request, max_bytes + WRAPPING_BYTES)
        async with whole.form(max_files=1, max_fields=4) as form:
            upload, named = form.get("file"), form.get("kind")
            if not isinstance(upload, UploadFile):
                problem = FieldProblem("file", "send the file in the form field `file`")
                raise Invalid("The form has no file.", fields=[problem])
            with path.open("wb") as file:
                size_bytes = 0
                while block := await upload.read(BLOCK_BYTES):
                    size_bytes += len(block)
                    _refuse_large(size_bytes, max_bytes)
                    await to_thread.run_sync(file.write, block)
    except MultiPartException as error:
        raise Invalid(f"The multipart body cannot be read: {error.message}", code="malformed_body") from error
    return named if isinstance(named, str) else kind


def _kind_of(name: str | None) -> ArtifactKind:
    problem = FieldProblem("kind", f"must be one of: {UPLOADABLE_KINDS}")
    if not name:
        raise Invalid("Say what the file is: POST /v1/artifacts?kind=onnx, or the form field `kind`.", fields=[problem])
    try:
        return ArtifactKind(name)
    except ValueError as error:
        raise Invalid("The file's kind is unknown.", fields=[problem]) from error


def _refuse_large(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise Invalid(
            f"A file may have {max_bytes} bytes here; the operator can raise PRUNELOOP_MAX_UPLOAD_BYTES.",
            code="too_large",
            metadata={"max_bytes": max_bytes},
        )


Received = Annotated[ReceivedFile, Depends(_received_file)]
