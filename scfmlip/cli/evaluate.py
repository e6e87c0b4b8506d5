"""``scfmlip evaluate``: energies, forces, charges, dipoles and potentials of a file of structures."""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import describe
from .parity import Parity, find_keys

if TYPE_CHECKING:
    from ase import Atoms

    from ..interfaces.ase import Calculator

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
        "atomic_dipoles, dipole, spins, potential (V at each atom, from all others). The output is written "
        "at the end and may replace the input; after a failure, finished frames are in partial-*-OUTPUT. "
        "If the input holds labels, errors against them are printed, and drawn with --parity.",
    )
    parser.add_argument("input", type=Path, help="structures, any format ASE reads")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        help="*.safetensors of scfmlip.save, or the file mace wrote (a pickle)",
    )
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read a model's pickle, which runs the code it holds"
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
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="name frames that cannot be read or evaluated and go on; exit status 1",
    )
    parser.add_argument("--parity", type=Path, metavar="PNG", help="draw predictions against labels")
    parser.add_argument(
        "--keys",
        nargs="+",
        default=[],
        metavar="OPTION=KEY",
        help="where labels stand, by a training's data options (charges_key=REF_hirshfeld); default: where "
        "scfmlip init would find them",
    )
    parser.add_argument("--no-accelerate", action="store_true", help="run mace-torch's own code")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no table of errors")
    parser.set_defaults(run=run)


def _batches(frames: Sequence[tuple[str, Atoms]], size: int) -> Iterator[list[tuple[str, Atoms]]]:
    """Batches of consecutive frames of one kind: results must not depend on other frames in the file."""
    from ..mace_torch.batches import batch_kind

    batch: list[tuple[str, Atoms]] = []
    for name, atoms in frames:
        if batch and (len(batch) == size or batch_kind(atoms) != batch_kind(batch[0][1])):
            yield batch
            batch = []
        batch.append((name, atoms))
    if batch:
        yield batch


def _store(atoms: Atoms, result: dict[str, Any], prefix: str) -> Atoms:
    """
    A copy of the frame with the results.

    Raises:
        ValueError: for a result that is not finite.
    """
    out = atoms.copy()
    if atoms.calc is not None:  # labels of the input file
        for name, value in atoms.calc.results.items():
            target = out.arrays if getattr(value, "shape", ())[:1] == (len(atoms),) else out.info
            target.setdefault(f"input_{name}", value)
    for names, target in ((_PER_FRAME, out.info), (_PER_ATOM, out.arrays)):
        for name in names:
            if name in result:
                if not np.isfinite(result[name]).all():
                    raise ValueError(f"the model's {name} is NaN or infinite: do atoms overlap?")
                target[prefix + name] = result[name]
    rows = result.get("density_coefficients")
    if rows is not None and rows.shape[1] >= 4:
        out.arrays[prefix + "atomic_dipoles"] = rows[:, [3, 1, 2]]
    if rows is not None and rows.shape[1] == 9:
        out.arrays[prefix + "atomic_quadrupoles"] = rows[:, 4:]
    return out


def _compute(calc: Calculator, group: Sequence[tuple[str, Atoms]], prefix: str) -> list[Atoms]:
    """Results of one batch."""
    import torch

    from ..mace_torch.batches import make_batch, split_outputs
    from ..mace_torch.building import running
    from ..mace_torch.potentials import add_potential

    names, frames = zip(*group, strict=True)
    batch = make_batch(calc.model, frames, calc.device, calc.dtype, calc.head, names)
    options = {"compute_stress": bool(frames[0].pbc.all())}
    if calc.ours:
        options["compute_potential"] = calc.model.rule.has_geometry
    with running(calc.model):
        out = calc.model(batch, **options)
    done = []
    for atoms, result in zip(frames, split_outputs(out, frames), strict=True):
        if not calc.ours:
            add_potential(calc.model, atoms, result)
        done.append(_store(atoms, result, prefix))
    if calc.device.type == "cuda":
        torch.cuda.synchronize()
    return done


def _each_or_why(
    calc: Calculator, group: Sequence[tuple[str, Atoms]], prefix: str
) -> list[Atoms | Exception]:
    """Results of a batch; frame by frame if the batch fails, so that one frame does not affect the others."""
    try:
        return [*_compute(calc, group, prefix)]
    except Exception as error:  # models may raise anything
        if len(group) == 1:
            return [error]
    return [found for one in group for found in _each_or_why(calc, [one], prefix)]


def _check(arguments: argparse.Namespace) -> bool:
    """
    Check the arguments before much is read.

    Returns:
        Whether the output replaces the input.

    Raises:
        FileExistsError, ValueError: names the option.
    """
    from ase.io.formats import extension2format

    from ..files import check_new, check_writable
    from ..structures import is_extxyz

    source, output = arguments.input, arguments.output
    check_new(output, arguments.overwrite)
    other = extension2format.get(output.suffix[1:])
    if other is not None and other.name != "extxyz":
        raise ValueError(
            f"{output} is written as extended XYZ, not as {other.name}: let its name end in .xyz"
        )
    within = source.is_file() and output.is_file() and source.samefile(output)
    if within and (arguments.index != ":" or not is_extxyz(source)):
        raise ValueError(
            f"{output} is the input, of which more than results would be lost: choose another name"
        )
    if arguments.parity is not None:
        check_writable(arguments.parity)
        if arguments.parity.resolve() in (source.resolve(), output.resolve()):
            raise ValueError("--parity must be another file than input and output")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    for option in ("charge", "spin"):
        value = getattr(arguments, option)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"--{option} must be a number, got {value}")
    if not re.fullmatch(r"[\w.+-]*", arguments.prefix):
        raise ValueError(f"--prefix must be of letters, digits and . + - _, got {arguments.prefix!r}")
    return within


class _Output:
    """
    Writes frames to a file; each is on disk before the next batch is evaluated.

    Args:
        part: The new, unfinished file.
    """

    def __init__(self, part: Path) -> None:
        self.part, self.count, self.size = part, 0, 0
        self.dropped: set[str] = set()

    def add(self, name: str, atoms: Atoms, prefix: str) -> None:
        """
        Write a frame.

        Raises:
            ValueError: if extended XYZ cannot hold its results.
        """
        from ase.io.formats import open_with_compression

        from ..structures import frame_text

        content, dropped = frame_text(atoms, [prefix + key for key in (*_PER_FRAME, *_PER_ATOM)])
        for key in dropped:
            if key not in self.dropped:
                text = f"left out, from {name} on: {key!r}, which extended XYZ cannot hold"
                print(text, file=sys.stderr)
        self.dropped.update(dropped)
        try:
            with open_with_compression(str(self.part), "a") as file:
                file.write(content)
        except BaseException:
            os.truncate(self.part, self.size)  # remove a partial frame
            raise
        self.size, self.count = self.part.stat().st_size, self.count + 1


class _Refusals:
    """
    Handling of bad frames.

    Args:
        skip: Whether to continue after them.
        found: Messages about frames that could not be read.
    """

    def __init__(self, skip: bool, found: Sequence[str]) -> None:
        self.skip, self.found = skip, list(found)
        for text in found:
            print(f"skipped: {text}", file=sys.stderr)

    def add(self, name: str, error: Exception) -> None:
        """Report a bad frame and continue, or stop."""
        text = describe(error)
        text = text if text.startswith(name) else f"{name}: {text}"
        if not self.skip:
            kind = ValueError if isinstance(error, ValueError) else RuntimeError
            raise kind(f"{text} (--skip-bad leaves such frames out)") from error
        self.found.append(text)
        print(f"skipped: {text}", file=sys.stderr)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    from ..devices import pick_device
    from ..interfaces.ase import Calculator
    from ..mace_torch.batches import check_frame
    from ..mace_torch.inputs import set_default
    from ..structures import read_frames

    within = _check(arguments)
    frames, unread = read_frames(arguments.input, arguments.index, arguments.skip_bad)
    calc = Calculator(
        arguments.model,
        device=pick_device(arguments.device),
        dtype=arguments.dtype,
        accelerate=not arguments.no_accelerate,
        head=arguments.head,
        trust_pickle=arguments.trust_pickle,
    )
    bad = _Refusals(arguments.skip_bad, unread)
    usable = []
    for name, atoms in frames:
        try:
            set_default(atoms, "total_charge", arguments.charge)
            set_default(atoms, "total_spin", arguments.spin)
            check_frame(calc.model, atoms, name)
            usable.append((name, atoms))
        except ValueError as error:
            bad.add(name, error)
    parity = Parity(find_keys([atoms for _, atoms in usable], arguments.keys), arguments.prefix)
    count = _evaluate(calc, usable, arguments, bad, within, parity)
    skipped = f", {len(bad.found)} skipped" if bad.found else ""
    print(f"wrote {count} frames to {arguments.output}{skipped}")
    if parity.pairs and not arguments.quiet:
        print(parity.table())
    if arguments.parity is not None:
        if not parity.pairs:
            raise ValueError(f"{arguments.input} holds no labels to draw against: name them with --keys")
        parity.draw(arguments.parity, arguments.input.name)
        print(f"wrote {arguments.parity}")
    return 1 if bad.found else 0


def _evaluate(
    calc: Calculator,
    usable: Sequence[tuple[str, Atoms]],
    arguments: argparse.Namespace,
    bad: _Refusals,
    within: bool,
    parity: Parity,
) -> int:
    """Write the results of frames and return their number; the output is replaced at the end."""
    from tqdm import tqdm

    from ..files import replacing

    output = None
    try:
        with (
            replacing(arguments.output, keep=True) as part,
            tqdm(total=len(usable), unit="frame", disable=arguments.quiet or None) as bar,
        ):
            output = _Output(part)
            for group in _batches(usable, arguments.batch_size):
                for (name, atoms), found in zip(
                    group, _each_or_why(calc, group, arguments.prefix), strict=True
                ):
                    try:
                        if isinstance(found, Exception):
                            raise found
                        output.add(name, found, arguments.prefix)
                        parity.add(name, atoms, found)
                    except OSError:
                        raise
                    except Exception as error:  # models may raise anything
                        bad.add(name, error)
                bar.update(len(group))
            if not output.count:
                raise RuntimeError(f"no frame of {arguments.input} could be evaluated: nothing was written")
            if within and (bad.found or output.dropped):
                old = arguments.output.with_name(f"before-{part.name.removeprefix('partial-')}")
                shutil.copy2(arguments.output, old)
                print(f"what is left out of {arguments.output} is in {old}, the file as it was")
    except BaseException:
        if output is not None and output.part.exists():
            text = f"{arguments.output} was not written; {output.count} finished frames are in {output.part}"
            print(text, file=sys.stderr)
        raise
    return output.count
