"""The artifact store's disk, and ways to fill it.

As root a small file system in memory is mounted there and filled to its last byte. Elsewhere a ``sitecustomize`` in the server's
processes lets every fsync below the folder fail with "no space left" while a flag file exists: the step before a file is named.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

MOUNT_BYTES = 96 << 20
STEP_BYTES = 1 << 20

FAILING_FSYNC = """
import errno, os, pathlib
FLAG, ROOT, fsync = pathlib.Path({flag!r}), {root!r}, os.fsync


def failing(descriptor):
    if FLAG.exists() and os.readlink(f"/proc/self/fd/{{descriptor}}").startswith(ROOT):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(descriptor)


os.fsync = failing
"""


class Disk:
    """A folder that can be full.

    Args:
        folder: The artifact store's.
        aside: A folder for what this needs itself.
        mount: Mount a file system of its own there, where that is allowed.
    """

    def __init__(self, folder: Path, aside: Path, *, mount: bool) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._is_mounted = mount and os.geteuid() == 0 and _mount(folder)
        self._filler = folder / "filler" if self._is_mounted else aside / "disk-is-full"
        self.environment: dict[str, str] = {}
        if not self._is_mounted:
            site = aside / "site"
            site.mkdir()
            text = FAILING_FSYNC.format(flag=str(self._filler), root=str(folder.resolve()))
            (site / "sitecustomize.py").write_text(text)
            self.environment["PYTHONPATH"] = str(site)

    @property
    def name(self) -> str:
        return "a full tmpfs" if self._is_mounted else "fsync fails with ENOSPC"

    def fill(self) -> None:
        if not self._is_mounted:
            self._filler.touch()
            return
        with self._filler.open("ab", buffering=0) as file:
            size_bytes = STEP_BYTES
            while size_bytes:
                try:
                    if os.write(file.fileno(), bytes(size_bytes)) < size_bytes:
                        size_bytes //= 2
                except OSError:
                    size_bytes //= 2

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        self.free()
        if self._is_mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True, capture_output=True)


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={MOUNT_BYTES},mode=0755", "pruneloop-chaos", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
