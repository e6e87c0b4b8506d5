"""Atomic writing of files, and locks for folders that only one process may write to."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

# prefixes of temporary files; files that are kept after a failure are not hidden
_HIDDEN, _KEPT = ".part-", "partial-"
_LOCK = ".lock"


@contextmanager
def replacing(path: str | Path, keep: bool = False) -> Iterator[Path]:
    """
    Create a new empty file next to ``path`` that replaces it when the block ends.

    Until then ``path`` is unchanged, whatever happens. The new file has an unpredictable name, and the
    suffix, permissions and owner of the old one. A link at ``path`` is replaced, not followed.

    Args:
        path: The file to write; its folder is created.
        keep: After a failure, leave the new file if anything was written to it.

    Yields:
        The new file.

    Raises:
        FileExistsError: if ``path`` is not an ordinary file.
        PermissionError: if the existing file is read-only.
    """
    path = Path(path)
    old = check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # shorten long names: a name may have 255 bytes
    part = path.with_name(f"{_KEPT if keep else _HIDDEN}{secrets.token_hex(4)}-{path.name[-56:]}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(part, flags, 0o666))
    done = False
    try:
        if old is not None:
            with suppress(PermissionError, AttributeError):
                os.chown(part, old.st_uid, old.st_gid)
            os.chmod(part, stat.S_IMODE(old.st_mode))
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        done = True
    finally:
        if not done and not (keep and part.exists() and part.stat().st_size):
            part.unlink(missing_ok=True)


def check_writable(path: Path) -> os.stat_result | None:
    """
    Check that ``path`` can be replaced; return the status of the existing file, or None.

    Raises:
        FileExistsError: if it is not an ordinary file but a folder or a device.
        PermissionError: if it is a read-only file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise FileExistsError(f"{path} is a folder: give the name of a file to write")
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(f"{path} is not an ordinary file, and would be replaced by one")
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} is read-only: choose another name, or make it writable")
    return None if path.is_symlink() else found


def check_new(path: Path, overwrite: bool) -> None:
    """
    Check that a command may write to ``path``.

    Raises:
        FileExistsError, PermissionError: if it exists and must not be replaced.
    """
    check_writable(path)
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name or pass --overwrite")


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: a kill at any time leaves the old file or the new one, never a partial one."""
    with replacing(path) as part, open(part, "wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_whole(path, lambda file: file.write(text.encode()))


# locks of this process: a child that outlives it must not keep them
_locked: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(folder: Path, what: str, files: Iterable[str] = ()) -> Iterator[None]:
    """
    Lock a folder against other processes; the lock ends with the process. The folder is created if needed.

    Args:
        folder: The folder.
        what: The activity of the process, for the message.
        files: Names of files that `replacing` writes there; temporary files left by killed processes are
            removed.

    Raises:
        BlockingIOError: if another process has locked it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    descriptor = _lock(path, what)
    try:
        for part in (
            p for name in files for p in folder.glob(f"{_HIDDEN}*-{name}") if descriptor is not None
        ):
            part.unlink(missing_ok=True)
        yield
    finally:
        if descriptor in _locked:  # a child has closed it already
            _locked.discard(descriptor)
            path.unlink(missing_ok=True)
            os.close(descriptor)
        if made:
            with suppress(OSError):  # something was written
                folder.rmdir()


def _lock(path: Path, what: str) -> int | None:
    """The descriptor that holds the lock; None if the file system has no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no file locks on this platform")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(
                f"another process {what} in {path.parent}: wait for it, or use another folder"
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK):
                raise
            warnings.warn(
                f"the file system of {path.parent} has no locks: see that no other process {what} there",
                stacklevel=4,
            )
            return None
        # the previous holder may have removed the file between our opening and locking it
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                _locked.add(descriptor)
                return descriptor
        os.close(descriptor)
