"""Errors at the command line, in one line each."""

from __future__ import annotations

# errors of the user's input; all others are failures
WRONG_INPUT = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_LONGEST = 1500


class Terminated(SystemExit):
    """Raised on SIGTERM or SIGHUP, so that unfinished files are removed as after Ctrl-C."""


def describe(error: BaseException) -> str:
    """One line about an error."""
    text = str(error)
    if isinstance(error, KeyboardInterrupt):
        text = f"interrupted. {text}" if text else "interrupted"
    elif isinstance(error, Terminated):
        text = "terminated"
    elif isinstance(error, MemoryError):
        text = f"out of memory. {text}" if text else "out of memory"
    elif isinstance(error, OSError) and error.strerror:
        text = ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
    elif not text or not isinstance(error, (*WRONG_INPUT, RuntimeError, ImportError, OSError)):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
