"""``scfmlip demo``: evaluate real structures with scfmlip and with the reference stack."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...devices import peak_memory
from ...files import replacing, write_text

if TYPE_CHECKING:
    import torch
    from ase import Atoms

# name, file, frame, repetitions, description
CASES = (
    ("al_water", "al_water.xyz", 0, (2, 1, 1), "Al(100) / water slab 2x1"),
    ("sio2_vacancy", "sio2_vacancy.xyz", 0, (1, 1, 1), "SiO2, oxygen vacancy +1"),
    ("al_water_large", "al_water.xyz", 0, (2, 2, 1), "Al(100) / water slab 2x2"),
)


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo",
        help="evaluate real structures with the reference stack and with scfmlip",
        description="Evaluate a MACE-POLAR-1-S shaped model on the structures shipped with the package, with "
        "mace-torch and graph-longrange and with scfmlip.accelerate, each in a process of its own; print "
        "agreement, time and memory. Those weights are random: the table compares programs, not chemistry. "
        "Then two small trained models, by charge equilibration and as a fixed point, on a metal-water "
        "interface beside DFT: errors, potential, response to a field, twenty steps of dynamics.",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def structure(case: str) -> Atoms:
    """The frame of a case, with charge and spin."""
    from ...data import path
    from ...structures import read_frame

    _, file, index, repeat, _ = next(c for c in CASES if c[0] == case)
    atoms = read_frame(path(file), index)
    info = {key: float(atoms.info[key]) for key in ("charge", "spin")}
    atoms = atoms.repeat(repeat)
    atoms.info.update(info, external_field=np.zeros(3))
    return atoms


def polar_model(
    elements: list[int], hidden: str = "512x0e", layers: int = 1, edge: str | None = None
) -> torch.nn.Module:
    """A PolarMACE of the MACE-POLAR-1 family with random weights; by default in the shape of its S model."""
    import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
    import torch
    from e3nn import o3
    from mace import modules
    from mace.modules.extensions import PolarMACE

    block = modules.interaction_classes["RealAgnosticResidualNonLinearInteractionBlock"]
    torch.manual_seed(0)
    model = PolarMACE(
        r_max=6.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=layers,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps(hidden),
        edge_irreps=None if edge is None else o3.Irreps(edge),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=30.0,
        atomic_numbers=elements,
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        kspace_cutoff_factor=1.5,
        atomic_multipoles_max_l=1,
        atomic_multipoles_smearing_width=1.5,
        field_feature_max_l=1,
        field_feature_widths=[1.5, 3.0],
        field_feature_norms=[20.0, 20.0, 0.5, 0.5],
        num_recursion_steps=2,
        field_si=False,
        include_electrostatic_self_interaction=True,
        add_local_electron_energy=True,
        field_norm_factor=1.0,
        fixedpoint_update_config={
            "type": "AgnosticEmbeddedOneBodyVariableUpdate",
            "potential_embedding_cls": "AgnosticChargeBiasedLinearPotentialEmbedding",
            "nonlinearity_cls": "MLPNonLinearity",
        },
        field_readout_config={"type": "OneBodyMLPFieldReadout"},
    )
    return model.requires_grad_(False)


def evaluate(who: str, case: str) -> dict[str, Any]:
    """
    Evaluate one case in this process.

    Returns:
        Energy, forces, charges; seconds of energy and forces, and of the forward pass without its MACE
        backbone (field updates, electrostatics, readout); peak memory, MiB, that energy and forces add.
    """
    import torch

    from ... import accelerate
    from ...mace_torch.batches import make_batch, split_outputs

    atoms = structure(case)
    model = polar_model(sorted(set(atoms.numbers.tolist())))
    backbone = [*model.interactions, *model.products]  # type: ignore[misc]
    if who == "scfmlip":
        model = accelerate(model)
    spent = [0.0]
    for module in backbone:

        def timed(*args, _call=module.forward, **kwargs):
            start = time.perf_counter()
            out = _call(*args, **kwargs)
            spent[0] += time.perf_counter() - start
            return out

        module.forward = timed
    batch = make_batch(model, [atoms], torch.device("cpu"), torch.float32)
    small = make_batch(model, [atoms[:3]], torch.device("cpu"), torch.float32)
    model({k: v.clone() for k, v in small.items()})  # warm-up, and the memory of the code itself
    base = peak_memory()
    seconds = field_seconds = np.inf
    result: dict[str, Any] = {}
    for _ in range(2):
        start = time.perf_counter()
        out = model({k: v.clone() for k, v in batch.items()})
        seconds = min(seconds, time.perf_counter() - start)
        result = split_outputs(out, [atoms])[0]
        spent[0] = 0.0
        start = time.perf_counter()
        model({k: v.clone() for k, v in batch.items()}, compute_force=False)
        field_seconds = min(field_seconds, time.perf_counter() - start - spent[0])
    return {
        "seconds": seconds,
        "field_seconds": field_seconds,
        "memory": peak_memory() - base,
        "energy": result["energy"],
        "forces": result["forces"].tolist(),
        "charges": result["charges"].tolist(),
        "atoms": len(atoms),
    }


def field_memory(who: str, case: str) -> dict[str, Any]:
    """Peak memory, MiB, of energy and forces for the field part alone, with a backbone that costs nothing."""
    import torch

    from ... import accelerate
    from ...mace_torch.batches import make_batch

    atoms = structure(case)
    model = polar_model(sorted(set(atoms.numbers.tolist())))
    features = torch.randn(len(atoms), 512, generator=torch.Generator().manual_seed(0)).requires_grad_()

    class Interaction(torch.nn.Module):
        """Passes on the first rows of fixed features."""

        def forward(self, node_attrs: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
            return features[: len(node_attrs)], None

    class Product(torch.nn.Module):
        """Passes on the interaction's output."""

        def forward(self, node_feats: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return node_feats

    model.interactions = torch.nn.ModuleList([Interaction()])
    model.products = torch.nn.ModuleList([Product()])
    if who == "scfmlip":
        model = accelerate(model)
    batches = [make_batch(model, [part], torch.device("cpu"), torch.float32) for part in (atoms[:3], atoms)]
    model({k: v.clone() for k, v in batches[0].items()})
    base = peak_memory()
    model({k: v.clone() for k, v in batches[1].items()})
    return {"memory": peak_memory() - base}


_JOBS = {"evaluate": evaluate, "field_memory": field_memory}


def _worker(job: str, who: str, case: str) -> dict[str, Any]:
    """Run a job in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "scfmlip", "demo", "--worker", job, who, case],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{job} of {case} with {who} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: str) -> dict[str, Any]:
    """Run both stacks on one case."""
    both = {who: _worker("evaluate", who, case) for who in ("reference", "scfmlip")}
    field = {who: _worker("field_memory", who, case)["memory"] for who in both}
    theirs, ours = both["reference"], both["scfmlip"]
    forces = np.array(theirs["forces"])

    def pair(key: str) -> tuple[float, float]:
        return theirs[key], ours[key]

    return {
        "atoms": ours["atoms"],
        "energy_relative": abs(theirs["energy"] - ours["energy"]) / abs(theirs["energy"]),
        "forces_relative": float(np.abs(forces - ours["forces"]).max() / np.abs(forces).max()),
        "charges": float(np.abs(np.array(theirs["charges"]) - ours["charges"]).max()),
        "energy + forces, s": pair("seconds"),
        "energy + forces, MiB": pair("memory"),
        "field part, s": pair("field_seconds"),
        "field part, MiB": (field["reference"], field["scfmlip"]),
    }


def draw(output: Path) -> list[Path]:
    """Draw the figures: DFT charges of both materials, their potential along z and on a slice."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ...data import path
    from ...structures import read_frame
    from ..plot import draw_slice, planar_averages

    files = []
    sigma = 0.6
    for name, file in (("al_water", "al_water.xyz"), ("sio2_vacancy", "sio2_vacancy.xyz")):
        atoms = read_frame(path(file), 0)
        rows = atoms.arrays["REF_hirshfeld"][:, None].astype(float)
        rows += (atoms.info["charge"] - rows.sum()) / len(rows)  # printed with three decimals
        wide = {"width_ratios": (2, 1)}
        fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.0), constrained_layout=True, gridspec_kw=wide)
        z, (potential, density) = planar_averages(atoms, rows, sigma, ("potential", "density"), 2, 160)
        axes[0].plot(z, potential, label="potential (V)")
        twin = axes[0].twinx()
        twin.plot(z, density * 1e3, color="tab:red", lw=0.8)
        axes[0].set(xlabel="z (Å)", ylabel="planar average of the potential (V)")
        twin.set_ylabel("of the density (10⁻³ e/Å³)", color="tab:red")
        x, y, values = draw_slice(atoms, rows, sigma, "potential", 1, atoms.positions.mean(0))
        limit = np.abs(values).max()
        image = axes[1].pcolormesh(x, y, values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        fig.colorbar(image, ax=axes[1], label="potential (V)")
        axes[1].set(xlabel="x (Å)", ylabel="z (Å)", aspect="equal")
        fig.suptitle(f"{name}: DFT Hirshfeld charges, Gaussians of {sigma} Å", fontsize=10)
        files.append(output / f"{name}_potential.png")
        with replacing(files[-1]) as part:
            fig.savefig(part, dpi=140)
        plt.close(fig)
    return files


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    if arguments.worker:
        job, who, case = arguments.worker
        print(json.dumps(_JOBS[job](who, case)))
        return 0
    from tqdm import tqdm

    arguments.output.mkdir(parents=True, exist_ok=True)
    print(
        "MACE-POLAR-1-S shaped model, random weights, float32, CPU: mace-torch + graph-longrange -> scfmlip"
    )
    print("Field part: all but the MACE backbone (electrostatics, field updates, readout); seconds forward.")
    table = {}
    for case, _, _, _, label in tqdm(CASES, "structures", disable=None, leave=False):
        row = table[label] = compare(case)
        tqdm.write(
            f"\n{label}, {row['atoms']} atoms. Agreement: energy {row['energy_relative']:.1e} (relative),\n"
            f"forces {row['forces_relative']:.1e} of the largest, charges {row['charges']:.1e} e"
        )
        for key, value in row.items():
            if isinstance(value, tuple):
                theirs, ours = value
                ratio = theirs / max(ours, 1e-3)
                tqdm.write(f"  {key:22s} {theirs:10.3f} -> {ours:10.3f}   {ratio:6.1f}x")
        sys.stdout.flush()
    write_text(arguments.output / "table.json", json.dumps(table, indent=1) + "\n")
    print()
    from .physics import physics

    for file in [*physics(arguments.output), *draw(arguments.output)]:
        print(f"wrote {file}")
    return 0
