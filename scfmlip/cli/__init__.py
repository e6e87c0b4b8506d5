"""The command line: ``scfmlip init | train | evaluate | md | info | convert | plot | bench | doctor``, ..."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .errors import WRONG_INPUT, Terminated, describe
from .quiet import silence_imports


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from ..version import __version__
    from . import bench, completion, convert, demo, doctor, evaluate, info, init, lammps, md, plot, train

    parser = argparse.ArgumentParser(
        prog="scfmlip",
        description="Self-consistent electrostatics for interatomic potentials.",
        epilog="Exit status: 0, 1 after a failure, 2 for a wrong command or input, 130 after Ctrl-C.",
    )
    parser.add_argument("--version", action="version", version=f"scfmlip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (init, train, evaluate, md, lammps, info, convert, plot, bench, demo, doctor, completion):
        module.add_command(commands)
    commands.choices["completion"].set_defaults(whole=parser)
    text = "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", help=text)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv: Arguments without the program's name; ``sys.argv`` if None.

    Returns:
        Exit status: 0 on success. Otherwise one line on standard error names the problem, and the status is 1
        (a failure), 2 (a wrong command or input), 130 (Ctrl-C) or 143 (SIGTERM).
    """
    command, debug = "scfmlip", False
    silence_imports()
    try:
        with _stops_on_signals() as interrupt, warnings.catch_warnings():
            # warnings about e3nn's and mace-torch's constants and scripted modules do not concern the user
            warnings.filterwarnings("ignore", message=".*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.*")
            warnings.filterwarnings("ignore", message="The TorchScript type system")
            arguments = build_parser().parse_args(argv)
            command, debug = f"scfmlip {arguments.command}", arguments.debug
            interrupt.begun = True
            status = arguments.run(arguments)
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # the reader of the output is gone; avoid more output, also when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if debug:
            traceback.print_exc()
        print(f"{command}: {describe(error)}", file=sys.stderr)
        if isinstance(error, Terminated):
            return int(str(error.code))
        if isinstance(error, KeyboardInterrupt):
            return 130
        return 2 if isinstance(error, WRONG_INPUT) else 1


@contextmanager
def _stops_on_signals() -> Iterator[_Interrupt]:
    """
    Convert SIGTERM and SIGHUP to `Terminated`; see `_Interrupt` about Ctrl-C.

    Not in torchrun's processes: they wait for each other where Python cannot handle signals, and simply end.
    """
    kept: dict[int, Any] = {}
    interrupt = _Interrupt()
    if threading.current_thread() is threading.main_thread() and os.environ.get("WORLD_SIZE", "1") == "1":
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # nohup ignores SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                kept[number] = signal.signal(number, _stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            kept[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class _Interrupt:
    """
    Ctrl-C: `KeyboardInterrupt`, or the end at once where that would abort the process.

    Packages that load call Python from machine code, which an exception may kill with a dump of its memory.
    Nothing is unfinished before a command has ``begun``; after that only compiled modules end at once.
    """

    def __init__(self) -> None:
        self.begun = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        while frame is not None:
            code = frame.f_code
            loads = code.co_filename.startswith("<frozen importlib._bootstrap")
            if loads and (not self.begun or code.co_qualname.startswith("ExtensionFileLoader.")):
                os.write(2, b"scfmlip: interrupted\n")
                os._exit(130)
            frame = frame.f_back
        raise KeyboardInterrupt


def _stop(number: int, _: object) -> None:
    # ignore further signals, so that cleaning up is not interrupted
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(128 + number)
