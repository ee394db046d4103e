"""Data that comes as a file: which kind its first bytes say it is, and what a zip may hold. Nothing is unpacked here.

A zip is read member by member and never written to a disk, so a name in it can lead nowhere; one that tries is refused all the
same, for whoever unpacks it later.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path, PurePosixPath

from domain.errors import FieldProblem, Invalid

MAX_MEMBERS = 500_000
MAX_UNPACKED_BYTES = 16 * 2**30
MAX_RATIO = 1000  # of a member's unpacked to its packed size: images and arrays do not shrink like that
RATIO_FROM_BYTES = 2**20
HEAD_BYTES = 65_536
PARQUET_MAGIC = b"PAR1"
DATA_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".csv", ".parquet", ".arrow"}
)
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth")


class DataFormat(StrEnum):
    """What an uploaded file of data is."""

    NPZ = "npz"
    FOLDER = "folder"  # a zip of one: images, tables, or what ``datasets`` saves to disk
    PARQUET = "parquet"
    CSV = "csv"


def is_folder(member: zipfile.ZipInfo) -> bool:
    """Tell whether a member is a folder. ``ZipInfo.is_dir`` raises for an empty name."""
    return member.filename.endswith("/")


def data_format(path: Path) -> DataFormat:
    """Return what a file is, by its first bytes and, of a zip, its directory.

    Raises:
        Invalid: ``bad_data`` where it is none of them.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head[:4] == PARQUET_MAGIC:
        return DataFormat.PARQUET
    if head[:2] == b"PK":
        if not zipfile.is_zipfile(path):
            raise _bad("it begins as a zip and is cut short")
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist() if not is_folder(member)]
        return DataFormat.NPZ if names and all(name.endswith(".npy") for name in names) else DataFormat.FOLDER
    if is_text(head) and b"\n" in head:
        return DataFormat.CSV
    raise _bad("it is no npz, no zip of a folder, no Parquet file and no CSV in UTF-8")


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are UTF-8 text; the last character may be cut through."""
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return len(head) == HEAD_BYTES and error.start >= len(head) - 3
    return True


def members(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """Yield the files of a zip that hold data, after a look at all of them.

    Raises:
        Invalid: ``bad_data`` for links, encryption, names that lead outside, and what unpacks to too much.
    """
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS:
        raise _bad(f"it has {len(entries)} members; at most {MAX_MEMBERS} are taken")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES:
        raise _bad(f"it unpacks to {unpacked} bytes; at most {MAX_UNPACKED_BYTES} are taken")
    seen = set()
    for entry in entries:
        _check(entry)
        if entry.filename in seen:
            raise _bad(f"the member {entry.filename!a} stands in it twice")
        seen.add(entry.filename)
    for entry in entries:
        if not is_folder(entry) and not is_hidden(entry.filename):
            yield entry


def is_hidden(name: str) -> bool:
    """Whether a path is what file managers leave behind, and no data."""
    parts = PurePosixPath(name).parts
    return (
        any(part.startswith(".") or part == "__MACOSX" for part in parts)
        or not parts
        or parts[-1]
        in {
            "Thumbs.db",
            "desktop.ini",
        }
    )


def _check(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name.split("/")[0]:
        raise _bad(f"the name of its member {name!a} leads outside")
    if entry.flag_bits & 1:
        raise _bad(f"its member {name!a} is encrypted")
    if name.lower().endswith(PICKLE_SUFFIXES):
        raise _bad(f"its member {name!a} is a pickle by its name, which is never opened")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _bad(f"its member {name!a} is a link or a device, not a file")
    if entry.file_size > RATIO_FROM_BYTES and entry.file_size > MAX_RATIO * max(1, entry.compress_size):
        raise _bad(f"its member {name!a} unpacks to {entry.file_size} bytes from {entry.compress_size}")


def _bad(why: str) -> Invalid:
    message = f"The data file cannot be used: {why}. See docs/how-to/data-formats.md for what is read."
    return Invalid(message, code="bad_data", fields=[FieldProblem("data.artifact", message)], metadata={"why": why})
