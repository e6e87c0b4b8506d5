"""``scfmlip evaluate``: energies, forces, charges, dipoles and potentials of a file of structures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms

_PER_FRAME = (
    "energy",
    "dipole",
    "stress",
    "total_charge",
    "interaction_energy",
    "electrostatic_energy",
    "electron_energy",
    "response_energy",
    "les_energy",
    "fermi_level",
    "scf_iterations",
    "external_forces",
)
_PER_ATOM = ("forces", "energies", "charges", "spins", "latent_charges", "potential")


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a mace-torch model on a file of structures",
        description="Evaluate a model (mace-torch's MACE, PolarMACE, MACELES, accelerated, or a point of the "
        "design space) on every frame of a file. Results go to extended XYZ under a prefix, beside whatever "
        "the input held: energy, forces, stress (crystals), and for models with charges: charges, "
        "atomic_dipoles, dipole, spins, potential (V at each atom, of all others).",
    )
    parser.add_argument("input", type=Path, help="structures, any format ASE reads")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        help="*.safetensors of scfmlip.save, or the file mace wrote (a pickle)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="extended XYZ to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--index", default=":", help="ASE index of the frames (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="default: the model's")
    parser.add_argument("--batch-size", type=int, default=4, help="frames per batch (default 4)")
    parser.add_argument("--head", help="head of a multi-head model, for all frames")
    parser.add_argument("--charge", type=float, help="total charge of frames without info['charge']")
    parser.add_argument("--spin", type=float, help="multiplicity of frames without info['spin']")
    parser.add_argument("--prefix", default="scfmlip_", help="of the names of results (default scfmlip_)")
    parser.add_argument("--skip-bad", action="store_true", help="report frames that fail and go on")
    parser.add_argument("--no-accelerate", action="store_true", help="run mace-torch's own code")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def _batches(frames: list[Atoms], size: int) -> Iterator[list[int]]:
    """Consecutive frames of one kind: results must not depend on what else is in the file."""
    from ..interfaces.mace.batches import batch_kind

    batch: list[int] = []
    for i, atoms in enumerate(frames):
        if batch and (len(batch) == size or batch_kind(atoms) != batch_kind(frames[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _store(atoms: Atoms, result: dict[str, Any], prefix: str) -> Atoms:
    """A copy of the frame that carries the result."""
    out = atoms.copy()
    if atoms.calc is not None:  # labels of the input file
        for name, value in atoms.calc.results.items():
            target = out.arrays if getattr(value, "shape", ())[:1] == (len(atoms),) else out.info
            target.setdefault(f"input_{name}", value)
    for name in _PER_FRAME:
        if name in result:
            out.info[prefix + name] = result[name]
    for name in _PER_ATOM:
        if name in result:
            out.arrays[prefix + name] = result[name]
    rows = result.get("density_coefficients")
    if rows is not None and rows.shape[1] == 4:
        out.arrays[prefix + "atomic_dipoles"] = rows[:, [3, 1, 2]]
    return out


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    import torch
    from ase.io import write
    from tqdm import tqdm

    from ..interfaces.ase import Calculator
    from ..interfaces.mace.batches import check_frame, make_batch, split_outputs
    from ..interfaces.mace.building import running
    from ..interfaces.mace.files import read_structures
    from ..interfaces.mace.inputs import set_default
    from ..interfaces.mace.potentials import add_potential

    if arguments.output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{arguments.output} exists: choose another name or pass --overwrite")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    frames = read_structures(arguments.input, arguments.index)
    calc = Calculator(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        accelerate=not arguments.no_accelerate,
        head=arguments.head,
    )
    usable, bad = [], 0
    for i, atoms in enumerate(frames):
        try:
            set_default(atoms, "total_charge", arguments.charge)
            set_default(atoms, "total_spin", arguments.spin)
            check_frame(calc.model, atoms, f"frame {i} of {arguments.input}")
            usable.append(atoms)
        except ValueError as error:
            if not arguments.skip_bad:
                raise ValueError(f"{error} (--skip-bad leaves such frames out)") from None
            bad += 1
            print(f"skipped: {error}", file=sys.stderr)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.unlink(missing_ok=True)
    with tqdm(total=len(usable), unit="frame", disable=arguments.quiet) as bar:
        for numbers in _batches(usable, arguments.batch_size):
            group = [usable[i] for i in numbers]
            batch = make_batch(calc.model, group, calc.device, calc.dtype, calc.head)
            options = {"compute_stress": bool(group[0].pbc.all())}
            if calc.ours:
                options["compute_potential"] = calc.model.rule.has_geometry
            with running(calc.model):
                out = calc.model(batch, **options)
            done = []
            for atoms, result in zip(group, split_outputs(out, group), strict=True):
                if not calc.ours:
                    add_potential(calc.model, atoms, result)
                done.append(_store(atoms, result, arguments.prefix))
            # what is done is on disk before the next batch starts
            write(arguments.output, done, format="extxyz", append=True)
            bar.update(len(group))
            del batch, out
            if calc.device.type == "cuda":
                torch.cuda.synchronize()
    print(f"wrote {len(usable)} frames to {arguments.output}" + (f", {bad} skipped" if bad else ""))
    return 1 if bad else 0
