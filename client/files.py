"""Files in a job's YAML: a path where the server wants a digest is uploaded first.

    model: {source: onnx, artifact: model.onnx}     # relative to the job's file
    data:  {source: npz, artifact: digits.npz}

The server never sees a path: it gets the digests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from client.api import PruneloopClient
from domain.artifact import ArtifactKind
from domain.errors import FieldProblem, Invalid

# Where a job names a file, and what that file is.
PLACES = (
    ("model", "artifact", ArtifactKind.ONNX),
    ("model", "weights", ArtifactKind.WEIGHTS),
    ("data", "artifact", ArtifactKind.DATA),
)
KIND_OF_SUFFIX = {".onnx": ArtifactKind.ONNX, ".npz": ArtifactKind.DATA, ".safetensors": ArtifactKind.WEIGHTS}
DIGEST = "sha256:"


def kind_of(file: Path) -> ArtifactKind:
    """Return what a file is, by the end of its name. Raises Invalid ``unknown_kind``."""
    known = KIND_OF_SUFFIX.get(file.suffix.lower())
    if known is None:
        raise Invalid(f"{file.name} does not end in {', '.join(KIND_OF_SUFFIX)}; give `kind`.", code="unknown_kind")
    return known


def read_job(content: bytes, folder: Path, client: PruneloopClient) -> bytes | dict[str, Any]:
    """Return what to submit: the bytes as they are, or the job with the digests of the files it names, uploaded now.

    Args:
        content: YAML or JSON; what is not a mapping goes to the server as it is, which says what is wrong.
        folder: What paths are relative to.
        client: Uploads.

    Raises:
        Invalid: ``no_such_file`` with the field that names it, or why the server refuses the file.
    """
    try:
        spec = yaml.safe_load(content)
    except yaml.YAMLError:
        return content
    if not isinstance(spec, dict):
        return content
    changed = with_uploads(spec, folder, lambda path, kind: client.upload_artifact(path, kind).digest)
    return content if changed is None else changed


def with_uploads(
    spec: Mapping[str, Any],
    folder: Path,
    upload: Callable[[Path, ArtifactKind], str],
    *,
    exists: Callable[[Path], bool] = Path.is_file,
) -> dict[str, Any] | None:
    """Return a copy of a job with digests instead of paths; None where it names no path."""
    found: dict[str, Any] = dict(spec)
    has_changed = False
    for part, name, kind in PLACES:
        section = found.get(part)
        value = section.get(name) if isinstance(section, Mapping) else None
        if not isinstance(section, Mapping) or not isinstance(value, str) or value.startswith(DIGEST):
            continue
        path = folder / Path(value).expanduser()
        if not exists(path):
            message = (
                f"there is no file {path}; give its path, seen from the job's file, or the digest of `pruneloop upload`"
            )
            raise Invalid(
                f"The job names a file that is not there: {path}.",
                code="no_such_file",
                fields=[FieldProblem(field=f"{part}.{name}", message=message)],
            )
        found[part] = {**section, name: upload(path, kind)}
        has_changed = True
    return found if has_changed else None
