"""Memory of a process."""

import subprocess
import sys

import numpy as np

from scfmlip.devices import peak_memory


def test_peak_memory_is_this_programs_own():
    """Not what the process that started it had: that hid the demo's figures when tests had started it."""
    held = np.ones(250_000_000)  # 1.9 GiB
    assert peak_memory() > 1900
    code = "from scfmlip.devices import peak_memory; print(peak_memory())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.5 * held.nbytes / 2**20
