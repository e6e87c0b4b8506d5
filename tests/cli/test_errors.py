"""Whatever goes wrong at the command line takes one line and has a status."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("mace", reason="needs mace-torch")

import scfmlip
from scfmlip.cli import _stops_on_signals, bench, build_parser, evaluate, main
from scfmlip.data import path

MODEL = str(path("models/al_water-equilibrated.safetensors"))
FRAMES = str(path("al_water.xyz"))


def environment():
    root = Path(scfmlip.__file__).parents[1]
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What users name by mistake."""
    folder = tmp_path_factory.mktemp("files")
    for suffix in ("xyz", "safetensors", "model", "yaml", "traj"):
        (folder / f"empty.{suffix}").write_bytes(b"")
        (folder / f"garbage.{suffix}").write_bytes(bytes(range(255, 0, -1)) * 3)
        (folder / f"folder.{suffix}").mkdir()
    (folder / "blank.xyz").write_text("\n\n")
    whole = Path(FRAMES).read_bytes()
    (folder / "cut.xyz").write_bytes(whole[: len(whole) // 3])
    (folder / "utf16.xyz").write_bytes(whole.decode().encode("utf-16"))
    model = Path(MODEL).read_bytes()
    (folder / "cut.safetensors").write_bytes(model[: len(model) // 2])
    (folder / "loop.xyz").symlink_to(folder / "loop.xyz")
    return folder


def one_line(capsys, command):
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith(f"scfmlip {command}: "), printed.err
    assert "Traceback" not in printed.err
    assert "debug shows" not in last, last


def cases():
    for name in ("missing", "empty", "garbage", "folder", "cut", "loop", "blank", "utf16"):
        yield f"{name}.xyz", ["evaluate", "{}", "--model", MODEL, "-o", "out.xyz"]
        yield f"{name}.xyz", ["plot", "{}", "-o", "out.png"]
    for suffix in ("safetensors", "model"):
        for name in ("missing", "empty", "garbage", "folder", "cut"):
            yield f"{name}.{suffix}", ["evaluate", FRAMES, "--index", "0", "--model", "{}", "-o", "out.xyz"]
            yield f"{name}.{suffix}", ["convert", "--trust-pickle", "{}", "out.safetensors"]
    for name in ("missing", "empty", "garbage", "folder"):
        yield f"{name}.yaml", ["train", "{}"]
    yield "empty.xyz", ["evaluate", FRAMES, "--model", MODEL, "-o", "{}"]
    yield "folder.xyz", ["evaluate", FRAMES, "--model", MODEL, "-o", "{}", "--overwrite"]
    yield "folder.xyz", ["convert", MODEL, "{}", "--overwrite"]
    yield "empty.xyz/a", ["convert", MODEL, "{}"]
    yield "a", ["evaluate", FRAMES, "--model", MODEL, "-o", os.devnull, "--overwrite"]
    yield "a", ["evaluate", FRAMES, "--model", MODEL, "-o", "out.traj"]
    yield "a", ["evaluate", FRAMES, "--model", MODEL, "-o", "out.xyz", "--index", "first"]
    yield "a", ["evaluate", FRAMES, "--model", MODEL, "-o", "out.xyz", "--index", "10000"]
    yield "a", ["evaluate", FRAMES, "--model", MODEL, "-o", "out.xyz", "--prefix", "a b"]
    yield "a", ["evaluate", FRAMES, "--model", MODEL, "-o", "out.xyz", "--charge", "nan"]
    yield "a", ["evaluate", FRAMES, "--model", MODEL, "-o", "out.xyz", "--device", "abacus"]
    yield "a", ["plot", FRAMES, "-o", "out.nothing"]
    yield "a", ["plot", FRAMES, "-o", "out.png", "--data", "out.png"]
    yield "a", ["plot", FRAMES, "-o", "out.png", "--sigma", "0"]
    yield "a", ["plot", FRAMES, "-o", "out.png", "--sigma", "1e-6"]
    yield "a", ["plot", FRAMES, "-o", "out.png", "--points", "0"]
    yield "a", ["plot", FRAMES, "-o", "out.png", "--charges", "positions"]
    yield "a", ["plot", FRAMES, "-o", "out.png", "--index", "10000"]
    yield "a", ["bench", "--atoms", "0"]
    yield "a", ["bench", "--repeats", "0"]


@pytest.mark.parametrize(("name", "command"), list(cases()))
def test_wrong_input_takes_one_line(name, command, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([part.format(files / name) for part in command]) == 2
    one_line(capsys, command[0])
    assert not list(tmp_path.iterdir()), "nothing was made"


def raising(error):
    def run(arguments):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyError("x"), 1, "KeyError: 'x' (--debug shows where)"),
        (EOFError(), 1, "EOFError: (--debug shows where)"),
        (StopIteration(), 1, "StopIteration: (--debug shows where)"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device", "a/b"), 1, "a/b: No space left on device"),
        (PermissionError(13, "Permission denied", "a/b"), 2, "a/b: Permission denied"),
        (RuntimeError("one\n  two\n"), 1, "one two"),
        (ValueError("wrong"), 2, "wrong"),
    ],
)
def test_every_error_has_a_status(error, status, text, monkeypatch, capsys):
    monkeypatch.setattr(bench, "run", raising(error))
    assert main(["bench"]) == status
    assert capsys.readouterr().err == f"scfmlip bench: {text}\n"


@pytest.mark.parametrize("command", [["--debug", "bench"], ["bench", "--debug"]])
def test_debug_shows_where(command, monkeypatch, capsys):
    monkeypatch.setattr(bench, "run", raising(KeyError("x")))
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "test_errors.py" in printed
    assert build_parser().parse_args(["bench"]).debug is False


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_terminated_command_clears_away(name, status, monkeypatch, capsys, tmp_path, request):
    number = getattr(signal, name)
    # a run in the background may have them ignored
    first = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, first))

    def terminated(*_):
        assert list(tmp_path.iterdir()), "the output is in the making"
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(evaluate, "_compute", terminated)
    before = signal.getsignal(number)
    output = tmp_path / "out.xyz"
    assert main(["evaluate", FRAMES, "--model", MODEL, "-o", str(output), "--quiet"]) == status
    assert capsys.readouterr().err == "scfmlip evaluate: terminated\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("wait", [0.4, 1.5])
def test_ctrl_c_while_packages_load_takes_one_line(wait, tmp_path):
    """Importing torch takes most of a short command's time."""
    command = [sys.executable, "-m", "scfmlip", "evaluate", FRAMES, "--model", MODEL]
    output = str(tmp_path / "out.xyz")
    process = subprocess.Popen([*command, "-o", output], env=environment(), stderr=subprocess.PIPE, text=True)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate()
    # Python ends itself by the signal where that came within text that is compiled
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in printed
    assert printed.strip().splitlines()[-1].endswith(": interrupted")


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_within_an_import(begun, tmp_path, monkeypatch, capfd):
    """It ends the process before a command has begun; after that the command can clear away."""
    (tmp_path / "loads_long.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "loads_long", raising=False)

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    with _stops_on_signals() as interrupt:
        interrupt.begun = begun
        with pytest.raises(KeyboardInterrupt if begun else SystemExit):
            importlib.import_module("loads_long")
    assert capfd.readouterr().err == ("" if begun else "scfmlip: interrupted\n")


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "scfmlip", "doctor"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.wait() == 1
    assert process.stderr.read() == ""
    process.stderr.close()
