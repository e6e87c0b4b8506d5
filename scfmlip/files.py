"""Files that are whole or not there, and folders that one process writes at a time."""

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

# of the names of temporary files; those that are kept after a failure are not hidden
_HIDDEN, _KEPT = ".part-", "partial-"
_LOCK = ".lock"


@contextmanager
def replacing(path: str | Path, keep: bool = False) -> Iterator[Path]:
    """
    A new empty file beside ``path`` that takes its place when the block ends.

    Whatever happens before, ``path`` is what it was. The new file has a name that nobody can foresee, and
    the suffix, permissions and owner of the old one. A link at ``path`` is replaced, not followed.

    Args:
        path: The file to write; its folder is made.
        keep: After a failure, leave the new file if anything was written to it.

    Yields:
        The new file.

    Raises:
        FileExistsError: if something else than a file is there.
        PermissionError: if the file there is read-only.
    """
    path = Path(path)
    old = check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the last characters of long names: a name has 255 bytes
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
    What is at ``path``, or None.

    Raises:
        FileExistsError: if that is no file: a folder, a device.
        PermissionError: if it is a read-only file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise FileExistsError(f"{path} is a folder: give the name of a file to write")
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(f"{path} is no ordinary file, and a new one would take its place")
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} is read-only: choose another name, or make it writable")
    return None if path.is_symlink() else found


def check_new(path: Path, overwrite: bool) -> None:
    """
    Whether a command may write there.

    Raises:
        FileExistsError, PermissionError: if something is there that it may not replace.
    """
    check_writable(path)
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name or pass --overwrite")


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a kill at any time leaves the old one or the new one, never a part."""
    with replacing(path) as part, open(part, "wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a text."""
    write_whole(path, lambda file: file.write(text.encode()))


# what this process has locked: a child that lives on must not keep it locked
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
    Hold a folder, made if it is not there, against other processes; one that dies lets go.

    Args:
        folder: The folder.
        what: What is done there, for the message.
        files: Names of files that are written there by `replacing`: what killed processes left is removed.

    Raises:
        BlockingIOError: if another process holds it.
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
        if descriptor in _locked:  # not in a child, which has closed it
            _locked.discard(descriptor)
            path.unlink(missing_ok=True)
            os.close(descriptor)
        if made:
            with suppress(OSError):  # something was written
                folder.rmdir()


def _lock(path: Path, what: str) -> int | None:
    """The descriptor that holds the lock; None where the file system has none."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks here")
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
        # the one before may have taken the file away between opening and locking it
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                _locked.add(descriptor)
                return descriptor
        os.close(descriptor)
