"""One check a kind of file, and a clearer reason where a refused file turns out to be a pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from api.checks.data import check_data
from api.checks.onnx_file import check_onnx
from api.checks.weights import check_weights
from domain.artifact import ArtifactKind
from domain.data_files import PICKLE_SUFFIXES
from domain.errors import Invalid
from domain.litert_file import check as check_litert
from domain.ncnn_file import check as check_ncnn
from domain.openvino_file import check as check_openvino
from domain.stored_zip import BROKEN, is_zip

CHECKS: dict[ArtifactKind, Callable[[Path], object]] = {
    ArtifactKind.ONNX: check_onnx,
    ArtifactKind.NCNN: check_ncnn,
    ArtifactKind.OPENVINO: check_openvino,
    ArtifactKind.LITERT: check_litert,
    ArtifactKind.WEIGHTS: check_weights,
    ArtifactKind.DATA: check_data,
}
UPLOADABLE_KINDS = ", ".join(kind.value for kind in CHECKS)

_PICKLE_PROTOCOLS = frozenset(range(2, 6))


def check_file(path: Path, kind: ArtifactKind) -> None:
    """Check that a file is plausibly of a kind.

    Raises:
        Invalid: ``pickle_refused`` for a pickle in any wrapping, else a code of the kind's own, or
            ``kind_not_accepted`` for a kind that only the server itself writes.
    """
    check = CHECKS.get(kind)
    if check is None:
        raise Invalid(
            f"Files of kind {kind.value} are written by the server only; upload one of: {UPLOADABLE_KINDS}.",
            code="kind_not_accepted",
        )
    if path.stat().st_size == 0:
        raise Invalid("The upload is empty; send the file's bytes.", code="empty_file")
    try:
        check(path)
    except Invalid as error:
        if is_pickle(path):
            raise Invalid(
                "This is a pickled file, which can run code when it is opened, so it is refused unread. "
                "Save weights with safetensors.torch.save_file, data with numpy.savez of plain arrays.",
                code="pickle_refused",
            ) from error
        raise


def is_pickle(path: Path) -> bool:
    """Tell whether a file is a pickle, or a zip that carries one (as ``torch.save`` writes)."""
    with path.open("rb") as file:
        head = file.read(2)
    if len(head) == 2 and head[0] == 0x80 and head[1] in _PICKLE_PROTOCOLS:
        return True
    if not is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith(PICKLE_SUFFIXES) for name in archive.namelist())
    except BROKEN:
        return False
