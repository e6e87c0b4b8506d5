"""
Two checkouts of this project in turns: what a change costs, on a machine that does other things too.

    git worktree add ../before COMMIT
    python -m profiling.turns ../before . --rounds 100 --case charges
    python -m profiling.turns ../before . --rounds 25 --case equilibrated --mode train

A process of each checkout does one step after the other, so that both see the same machine; compared are the
CPU times of neighbouring steps. One thread. ``charges`` is charge equilibration of 16 crystals of 100 atoms
with the derivatives of `bench.equilibration`; ``polar`` is an accelerated PolarMACE of two layers with 32
channels on 24 atoms of water; any other case is a rule of `bench.rules` on 72 atoms.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

CHARGES = """
import torch
from bench.equilibration import crystal
from scfmlip import Coulomb, charge_equilibration
generator = torch.Generator().manual_seed(0)
parts = [crystal(100, generator) for _ in range(16)]
operator = Coulomb(l_max=0, sigma=1.0)
positions, chi, hardness = (torch.cat([p[i] for p in parts]) for i in (0, 2, 3))
cells = torch.stack([p[1] for p in parts])
plan = operator.plan(cells, None, torch.arange(16).repeat_interleave(100), len(positions))

def step():
    leaves = [t.clone().requires_grad_() for t in (positions, chi, hardness)]
    solution = charge_equilibration(operator.prepare(leaves[0], cells, plan=plan), *leaves[1:])
    torch.autograd.grad(solution.energy.sum() + (solution.charges**2).sum(), leaves)
"""
RULE = """
import ase.io, torch
import bench.rules
from scfmlip.data import path
from scfmlip.mace_torch.batches import make_batch
torch.manual_seed(0)
atoms = ase.io.read(path("sio2_vacancy.xyz"), 0)
atoms.info = {{"charge": 0}}
model = bench.rules.build(*bench.rules.RULES[{case!r}], 1, "float32")
batch = make_batch(model, [atoms], torch.device("cpu"), torch.float32)

def step():
    bench.rules.step(model, batch, {mode!r})
"""
POLAR = """
import torch
from bench.models import water
from scfmlip import accelerate
from scfmlip.cli.demo.command import polar_model
from scfmlip.mace_torch.batches import make_batch
model = polar_model([1, 8], "32x0e + 32x1o", 2, "32x0e + 32x1o").float()
model.requires_grad_({train})
model = accelerate(model)
given = make_batch(model, [water(24)], torch.device("cpu"), torch.float32)
weights = [p for p in model.parameters() if p.requires_grad]

def step():
    out = model(dict(given), training={train})
    if {train}:
        loss = out["energy"].square().sum() + out["forces"].square().sum()
        torch.autograd.grad(loss, weights, allow_unused=True)
"""
LOOP = """
import sys, time, warnings
warnings.simplefilter("ignore")
{setup}
torch.set_num_threads(1)
for _ in range(3):
    step()
print("ready", flush=True)
for _ in sys.stdin:
    start = time.process_time()
    step()
    print(time.process_time() - start, flush=True)
"""


def start(folder: Path, program: str) -> subprocess.Popen[str]:
    """A process of a checkout, once it is ready to do a step for each line it gets."""
    paths = os.pathsep.join(str(folder / name) for name in ("", "kernels"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environment,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError(f"the checkout in {folder} cannot do this step: see what it printed")
    return process


def do_step(process: subprocess.Popen[str]) -> float:
    """Seconds of CPU time."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    """Measure and print a line for each checkout and one for their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--case", default="charges")
    parser.add_argument("--mode", choices=("forces", "train"), default="forces")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--starts", type=int, default=5, help="a process's memory lies well or badly, for good"
    )
    arguments = parser.parse_args()
    if arguments.case == "polar":
        setup = POLAR.format(train=arguments.mode == "train")
    else:
        setup = CHARGES if arguments.case == "charges" else RULE.format(**vars(arguments))
    folders = [folder.resolve() for folder in (arguments.before, arguments.after)]
    program = LOOP.format(setup=setup)
    seconds: list[list[float]] = [[], []]
    for _ in range(arguments.starts):
        processes = [start(folder, program) for folder in folders]
        for i in range(arguments.rounds):
            for which in (0, 1) if i % 2 else (1, 0):
                seconds[which].append(do_step(processes[which]))
        for process in processes:
            process.terminate()
    for name, values in zip(("before", "after"), seconds, strict=True):
        print(f"{name}: at best {min(values) * 1e3:.2f} ms, median {statistics.median(values) * 1e3:.2f} ms")
    low, middle, high = statistics.quantiles((b / a for a, b in zip(*seconds, strict=True)), n=4)
    print(f"after / before: median {middle:.3f}, half of them between {low:.3f} and {high:.3f}")


if __name__ == "__main__":
    main()
