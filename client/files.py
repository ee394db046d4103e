"""Files in a job's YAML: a path where the server wants a digest is uploaded first.

    model: {source: onnx, artifact: model.onnx}     # relative to the job's file
    data:  {source: npz, artifact: digits.npz}
    data:  {source: images, artifact: flowers/}     # a folder goes as a zip, packed the same way every time

The server never sees a path: it gets the digests.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from client.api import PruneloopClient
from domain.artifact import ArtifactKind, ArtifactRef
from domain.data_files import is_hidden
from domain.errors import FieldProblem, Invalid

# Where a job names a file, and what that file is.
PLACES = (
    ("model", "artifact", ArtifactKind.ONNX),
    ("model", "weights", ArtifactKind.WEIGHTS),
    ("data", "artifact", ArtifactKind.DATA),
)
KIND_OF_SUFFIX = {
    ".onnx": ArtifactKind.ONNX,
    ".safetensors": ArtifactKind.WEIGHTS,
    **dict.fromkeys((".npz", ".csv", ".parquet", ".zip"), ArtifactKind.DATA),
}
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
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
    changed = with_uploads(spec, folder, lambda path, kind: upload(client, path, kind).digest)
    return content if changed is None else changed


def upload(client: PruneloopClient, path: Path, kind: ArtifactKind) -> ArtifactRef:
    """Upload a file, or a folder of data as a zip."""
    if kind is not ArtifactKind.DATA or not path.is_dir():
        return client.upload_artifact(path, kind)
    return upload_folder(client, path)


def upload_folder(client: PruneloopClient, path: Path) -> ArtifactRef:
    """Upload a folder of data as a zip."""
    with tempfile.TemporaryDirectory(prefix="pruneloop-pack-") as place:
        packed = Path(place) / f"{path.resolve().name}.zip"
        pack_folder(path, packed)
        return client.upload_artifact(packed, ArtifactKind.DATA)


def pack_folder(folder: Path, packed: Path) -> None:
    """Zip a folder: the same files give the same bytes, and so the same digest. Links and hidden files stay out.

    Raises:
        Invalid: ``empty_folder``.
    """
    names = sorted(
        name
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and not is_hidden(name := path.relative_to(folder).as_posix())
    )
    if not names:
        raise Invalid(f"{folder} holds no files.", code="empty_folder")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # images and Parquet are packed already
        for name in names:
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.external_attr = 0o100644 << 16
            with (folder / name).open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)


def with_uploads(
    spec: Mapping[str, Any],
    folder: Path,
    upload: Callable[[Path, ArtifactKind], str],
    *,
    exists: Callable[[Path], bool] = Path.exists,
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
