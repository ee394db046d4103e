"""Artifacts that are several files in one: a zip without compression of exactly these names, nothing of it believed.

What a device unpacks comes from elsewhere. The names are known, so no path is; members are stored, so one is as large as what is
there; each has a limit; zipfile checks their sums while they are read. Equal members give equal bytes.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from domain.errors import Invalid

ENCRYPTED = 0x1
# What zipfile and zlib raise for files made to break them: an offset before the file's begin is an OSError.
BROKEN = (
    zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OSError, struct.error, zlib.error
)  # fmt: skip
_MADE_AT = (1980, 1, 1, 0, 0, 0)


def is_zip(file: Path) -> bool:
    """Tell whether a file ends as a zip does. ``zipfile.is_zipfile`` raises for some that nearly do."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return False


@dataclass(frozen=True)
class StoredZip:
    """A kind of such files.

    Args:
        what: For people: ``An ncnn artifact``.
        suffix: Of its files, without the dot.
        limits: Member name -> the most bytes it may have.
        error: Raised where a file is not one.
    """

    what: str
    suffix: str
    limits: Mapping[str, int]
    error: type[Invalid]

    def pack(self, members: Mapping[str, bytes]) -> bytes:
        """Return the file of its members; raises ``error`` where one is too large."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name in self.limits:
                self._require_size(name, len(members[name]))
                member = zipfile.ZipInfo(name, _MADE_AT)
                member.create_system = 3  # Unix, wherever it is made
                member.external_attr = 0o644 << 16
                archive.writestr(member, members[name])
        return buffer.getvalue()

    @contextmanager
    def opened(self, file: BinaryIO) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
        """Give (archive, member by name); whatever zipfile complains of meanwhile is raised as ``error``."""
        try:
            with zipfile.ZipFile(file) as archive:
                members = self._members(archive)
                if sum(member.file_size for member in members.values()) > file.seek(0, io.SEEK_END):
                    raise self.error("The zip's members overlap; export the model again.")
                yield archive, members
        except BROKEN as error:
            raise self.error(f"This is no {self.suffix} artifact ({error}); export the model again.") from error

    def _members(self, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
        found = archive.infolist()
        if sorted(member.filename for member in found) != sorted(self.limits):
            held = ", ".join(repr(member.filename[:40]) for member in found[:4]) or "nothing"
            raise self.error(f"{self.what} holds {' and '.join(self.limits)} and no more; this zip holds {held}.")
        for member in found:
            is_stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
            if not is_stored or member.flag_bits & ENCRYPTED:
                raise self.error(
                    f"{member.filename} is compressed or encrypted; pack it stored:"
                    f" zip -0 FILE.{self.suffix} {' '.join(self.limits)}."
                )
            self._require_size(member.filename, member.file_size)
        return {member.filename: member for member in found}

    def _require_size(self, name: str, size_bytes: int) -> None:
        if size_bytes > self.limits[name]:
            raise self.error(f"{name} has {size_bytes} bytes; at most {self.limits[name]} are taken.")
