"""Is a file data that a builder can read? Its head, and of a zip the directory, are looked at."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

from api.checks.npz import check_npz
from domain.data_files import DATA_SUFFIXES, PARQUET_MAGIC, DataFormat, data_format, members
from domain.errors import Invalid
from domain.stored_zip import BROKEN


def check_data(path: Path) -> None:
    """Check an npz, a zip of a folder, a Parquet file or a CSV. Raises Invalid ``bad_data`` or ``pickle_refused``."""
    try:
        kind = data_format(path)
    except Invalid:
        if not _is_cut_zip(path):
            raise
        return check_npz(path)  # which says what is wrong with it
    except BROKEN:
        kind = DataFormat.NPZ  # whose check says it
    if kind is DataFormat.NPZ:
        return check_npz(path)
    if kind is DataFormat.PARQUET:
        with path.open("rb") as file:
            file.seek(-len(PARQUET_MAGIC), 2)
            if path.stat().st_size < 12 or file.read() != PARQUET_MAGIC:
                raise Invalid("The Parquet file is cut short; write it again and upload it whole.", code="bad_data")
    if kind is DataFormat.FOLDER:
        with zipfile.ZipFile(path) as archive:
            found = list(members(archive))
        if not any(PurePosixPath(entry.filename).suffix.lower() in DATA_SUFFIXES for entry in found):
            message = (
                f"The zip holds no data; builders read {', '.join(sorted(DATA_SUFFIXES))} in it, and an npz as it is."
            )
            raise Invalid(message, code="bad_data")
    return None


def _is_cut_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
