"""Quiet on a host: builders pause between batches while a measurement runs.

Two files locked by ``flock``, so every hold dies with its process, however it ends:

    gate   a turnstile. A builder passes through it (shared, released at once) before every batch; a measurer keeps it
           (exclusive) while it waits and measures, so that no stream of batches can starve it.
    busy   shared by batches in progress, exclusive for a measurement.

Source: the turnstile of Downey, The Little Book of Semaphores, 4.2.5 (no-starve readers-writers).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from domain.errors import Unavailable

POLL_S = 0.005  # a waiting measurer looks this often: short against a batch, nothing against a measurement


def default_path() -> Path:
    """Return where every process of this host looks, unless told otherwise."""
    return Path(tempfile.gettempdir()) / "pruneloop-quiet.lock"


@contextmanager
def measuring(
    path: Path | None = None, *, is_cancelled: Callable[[], bool] = lambda: False, timeout_s: float | None = None
) -> Iterator[float]:
    """Wait for quiet and keep it; yields the seconds waited.

    Args:
        path: Lock file shared by all processes of the host; ``<path>.gate`` lies beside it.
        is_cancelled: Polled while waiting.
        timeout_s: Longest wait; None: as long as a batch takes.

    Raises:
        Unavailable: ``quiet_cancelled`` if cancelled while waiting, ``quiet_timeout`` past ``timeout_s``, ``quiet_unsafe``
            if the lock file is not a plain file.
    """
    busy_path = path or default_path()
    begin_s = time.monotonic()

    def wait(lock_path: Path) -> int:
        while True:
            descriptor = _try_lock(lock_path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if descriptor is not None:
                return descriptor
            if is_cancelled():
                raise Unavailable("Cancelled while waiting for a quiet host.", code="quiet_cancelled")
            if timeout_s is not None and time.monotonic() - begin_s > timeout_s:
                raise Unavailable(
                    f"No quiet on this host within {timeout_s:.0f} s: something holds {lock_path}.",
                    code="quiet_timeout",
                    metadata={"path": str(lock_path)},
                )
            time.sleep(POLL_S)

    gate = wait(_gate(busy_path))
    try:
        busy = wait(busy_path)
        try:
            yield time.monotonic() - begin_s
        finally:
            os.close(busy)
    finally:
        os.close(gate)


@contextmanager
def building(path: Path | None = None) -> Iterator[None]:
    """Enter around one batch of heavy work: waits while a measurement holds or wants quiet. About 20 µs when none does.

    Raises:
        Unavailable: ``quiet_unsafe`` if the lock file is not a plain file.
    """
    busy_path = path or default_path()
    os.close(_lock(_gate(busy_path), fcntl.LOCK_SH))
    busy = _lock(busy_path, fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(busy)


def _gate(path: Path) -> Path:
    return path.with_name(path.name + ".gate")


def _lock(path: Path, operation: int) -> int:
    descriptor = None
    while descriptor is None:
        descriptor = _try_lock(path, operation)
    return descriptor


def _try_lock(path: Path, operation: int) -> int | None:
    """Return an open descriptor that holds the lock; None if it is taken, or if the file was replaced meanwhile."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, operation)
        # A cleaner of the temp folder may have unlinked the file between open and lock: such a lock holds nobody off.
        with suppress(FileNotFoundError):
            held, seen = os.fstat(descriptor), path.lstat()
            if (held.st_dev, held.st_ino) == (seen.st_dev, seen.st_ino):
                return descriptor
    except BlockingIOError:
        pass
    except BaseException:  # whatever it was: the descriptor is ours to close
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _open(path: Path) -> int:
    """Open read-only, creating at most an empty file of our own.

    A lock needs no write access, so agent and builder may be different users: the second one opens the first one's file
    without O_CREAT, which is what fs.protected_regular forbids in a sticky folder. O_NOFOLLOW refuses a planted link.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    while True:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
                os.fchmod(descriptor, 0o644)  # whatever the umask: another user must be able to open it
            except FileExistsError:
                if path.is_symlink():
                    raise _unsafe(path) from None
                continue
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.EMLINK}:
                raise _unsafe(path) from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _unsafe(path)
        return descriptor


def _unsafe(path: Path) -> Unavailable:
    return Unavailable(
        f"{path} is not a plain file: remove it, or name another lock file in PRUNELOOP_AGENT_QUIET_FILE.",
        code="quiet_unsafe",
        metadata={"path": str(path)},
    )
