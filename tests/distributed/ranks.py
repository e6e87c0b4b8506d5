"""Functions of tests on several ranks: started by mpiexec, one process each, in the environment's own MPI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def mpiexec():
    """The environment's own, or a skip: that of the system may be another MPI than mpi4py has."""
    pytest.importorskip("mpi4py", exc_type=ImportError)
    found = Path(sys.executable).parent / "mpiexec"
    command = str(found) if found.exists() else shutil.which("mpiexec")
    if command is None:
        pytest.skip("needs mpiexec: pip install 'scfmlip[lammps]'")
    return command


def start(n, *arguments, timeout=300, cwd=None):
    """Python on ``n`` ranks, on the CPU's own code: Triton's interpreter would take minutes."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "tests")))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [mpiexec(), "-n", str(n), sys.executable, "-W", "ignore", *map(str, arguments)],
        env={**environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
    )


def run_ranks(n, script, *arguments, timeout=300, check=True):
    """Run a Python script on ``n`` ranks; its output, or a failure with all of it."""
    done = start(n, script, *arguments, timeout=timeout)
    if check and done.returncode != 0:
        pytest.fail(f"{n} ranks ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return done
