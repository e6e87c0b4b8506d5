"""Long work shows a bar on a terminal, and is silent where there is none."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scfmlip.data import path

fcntl, pty, termios = (pytest.importorskip(name, reason="needs Unix") for name in ("fcntl", "pty", "termios"))

ROOT = Path(__file__).parents[1]
MODEL = str(path("models/al_water-equilibrated.safetensors"))


def run(command, folder, terminal):
    """What a command writes to standard error, which is a terminal or a pipe."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    source = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    env = {**kept, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "TERM": "xterm"}
    command = [sys.executable, "-W", "ignore", *command]
    if not terminal:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen(
        command, cwd=folder, env=env, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
    os.close(ours)
    assert process.returncode == 0, written
    return written.decode()


def training(folder):
    backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
    options = {
        "data": {"train": str(path("al_water.xyz")), "valid_fraction": 0.5},
        "model": {"rule": "short_range", "backbone": backbone},
        "stages": [{"epochs": 1}],
        "output": "out",
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(options))
    return ["-m", "scfmlip", "train", "train.yaml", "--device", "cpu", "--fresh"], (
        "graphs:",
        "epoch 0:",
        "valid:",
    )


def dynamics(folder):
    options = {"structure": str(path("al_water.xyz")), "model": MODEL, "steps": 3, "velocities": "zero"}
    (folder / "md.yaml").write_text(yaml.safe_dump(options))
    return ["-m", "scfmlip", "md", "md.yaml", "--device", "cpu", "--fresh"], ("step/s", "meV/atom")


def evaluation(folder):
    options = ["--model", MODEL, "--charge", "0", "-o", "out.xyz", "--overwrite"]
    return ["-m", "scfmlip", "evaluate", str(path("al_water.xyz")), *options], ("2/2",)


def harness(folder):
    size = ["--case", "energy", "--size", "24", "--repeats", "2", "--seconds", "0.1", "--no-memory"]
    options = [
        "--provider",
        "scfmlip",
        "--mode",
        "forward",
        "--device",
        "cpu",
        "--out",
        str(folder / "rows.csv"),
    ]
    return ["-m", "bench.run", *size, *options], ("0/2",)


LONG = [pytest.param(work, marks=pytest.mark.slow) for work in (training, evaluation)]


@pytest.mark.parametrize("work", [dynamics, harness, *LONG], ids=lambda work: work.__name__)
def test_bars_only_on_terminals(work, tmp_path):
    command, bars = work(tmp_path)
    shown = run(command, tmp_path, terminal=True)
    assert [bar for bar in bars if bar not in shown] == [], shown
    silent = run(command, tmp_path, terminal=False)
    assert "\r" not in silent
    assert not [bar for bar in bars if bar in silent], silent


def test_lines_stand_above_a_bar(capsys):
    from bench.progress import Bar, say

    for number in Bar(range(2)):
        say("row", number)
    found = capsys.readouterr()
    assert found.out == "row 0\nrow 1\n"
    assert found.err == ""
