"""Two processes train the same model as one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from scfmlip.training.checkpoints import load_checkpoint
from scfmlip.training.processes import pick_device

from .problems import environment, options


def test_devices():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="must be auto, cpu or cuda"):
        pick_device("abacus")
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="finds no CUDA device"):
            pick_device("cuda")


def run(folder, values, processes):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "29631", "-m"]
    command = [*start, "scfmlip", "train", str(path), "--quiet"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_checkpoint(Path(values["output"]) / "checkpoint.pt"), done.stdout


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """
    The same batches, gradients and errors, shared by two; and they resume.

    Of 8 frames in batches of 7 the second process gets nothing of the last batch.
    """
    values = options(tmp_path, epochs=3, batch_size=7)
    one, printed = run(tmp_path, {**values, "output": str(tmp_path / "one")}, 1)
    assert printed.count("3 epochs") == 1
    both = {**values, "output": str(tmp_path / "two")}
    both["stages"][0]["epochs"] = 2
    run(tmp_path, both, 2)
    both["stages"][0]["epochs"] = 3
    two, printed = run(tmp_path, both, 2)
    assert printed.count("3 epochs") == 1
    for name, want in one["model"].items():
        # Adam divides gradients by their size: rounding of small ones shows
        torch.testing.assert_close(two["model"][name], want, rtol=1e-7, atol=1e-9)
    for a, b in zip(one["progress"]["history"], two["progress"]["history"], strict=True):
        for key in set(a) - {"seconds"}:
            assert b[key] == pytest.approx(a[key], rel=1e-7, abs=1e-9), key
