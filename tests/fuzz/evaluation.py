"""Random files for ``scfmlip evaluate``: columns are the calculator's, and what is spoilt loses nothing."""

from __future__ import annotations

import atexit
import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ase import Atoms
from ase.io import read, write
from models.cases import BACKBONE, ELEMENTS

import scfmlip.models
from fuzz.calculator import NAMES, random_atoms, same
from fuzz.outcomes import check
from scfmlip.ase import Calculator
from scfmlip.cli import main

# of random frames, which are those of the calculator's calls
MODELS = {
    "short_range": ("short_range", "none"),
    "qeq": ("equilibrated", "charge"),
    "local": ("local", "none"),
}
SMALL = {**BACKBONE, "hidden_irreps": "2x0e+2x1o", "MLP_irreps": "2x0e", "max_ell": 1}


@cache
def folder() -> str:
    """Of the models' files, as long as this process lives."""
    name = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, name)
    return name


@cache
def model(name: str) -> tuple[Path, Calculator]:
    """A small model: its file and its calculator."""
    rule, constraint = MODELS[name]
    config = {
        "elements": ELEMENTS,
        "backbone": SMALL,
        "density": {"l_max": 1, "sigma": 1.2, "tolerance": 1e-10},
        "rule": rule,
        "constraint": constraint,
        "dtype": "float64",
    }
    file = Path(folder()) / f"{name}.safetensors"
    scfmlip.models.save(scfmlip.models.build(config), file)
    return file, Calculator(file)


def run(arguments: list[Any], calc: Calculator | None = None) -> tuple[int, str, str]:
    """
    Exit status and what was printed; argparse's way out is an exit status too.

    A model that is there already, ``calc``, is not loaded again, which takes seconds.
    """
    loaded = contextlib.nullcontext()
    if calc is not None:
        loaded = mock.patch("scfmlip.interfaces.ase.Calculator", return_value=calc)
    out, err = io.StringIO(), io.StringIO()
    with loaded, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["evaluate", *map(str, arguments), "--quiet"])
        except SystemExit as error:
            status = int(str(error.code))
    return status, out.getvalue(), err.getvalue()


def random_frames(rng: np.random.Generator, name: str, least: int = 1) -> list[Atoms]:
    """With inputs under any name, labels and other columns."""
    frames = []
    for i in range(int(rng.integers(least, 6))):
        atoms = random_atoms(rng, name)
        for key, value in list(atoms.info.items()):
            if rng.random() < 0.5:
                del atoms.info[key]
                atoms.info[str(rng.choice(NAMES[key]))] = value
        atoms.info |= {"number": i, "REF_energy": float(rng.normal()), "comment": "two words"}
        if rng.random() < 0.5:
            atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3))
        if rng.random() < 0.3:
            atoms.set_tags(rng.integers(0, 5, len(atoms)))
        frames.append(atoms)
    return frames


def files(place: Path) -> dict[str, bytes]:
    """All of a folder."""
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def compare(got: Atoms, want: Atoms, calc: Calculator, prefix: str, what: str) -> None:
    """Results are the calculator's, and what the frame held is still there."""
    alone = want.copy()
    alone.calc = calc
    energy, forces = alone.get_potential_energy(), alone.get_forces()
    same(got.info[f"{prefix}energy"], energy, 1e-7, f"energy, {what}")
    same(got.arrays[f"{prefix}forces"], forces, 2e-7, f"forces, {what}")
    if want.pbc.all():
        stress = alone.get_stress()
        stored = np.asarray(got.info[f"{prefix}stress"])
        same(
            stored.reshape(-1)[[0, 4, 8, 5, 2, 1]] if stored.size == 9 else stored,
            stress,
            1e-7,
            f"stress, {what}",
        )
    for column in ("charges", "potential"):
        if column in calc.results:
            same(got.arrays[f"{prefix}{column}"], calc.results[column], 1e-6, f"{column}, {what}")
    if "dipole" in calc.results and not want.pbc.any():
        same(got.info[f"{prefix}dipole"], calc.results["dipole"], 1e-6, f"dipole, {what}")
    same(got.positions, want.positions, 1e-7, f"positions, {what}")
    same(got.info["REF_energy"], want.info["REF_energy"], 1e-7, f"label, {what}")
    check(got.pbc.tolist() == want.pbc.tolist(), f"pbc, {what}")
    check(set(want.info) <= set(got.info), f"lost {set(want.info) - set(got.info)}, {what}")
    check(set(want.arrays) <= set(got.arrays), f"lost {set(want.arrays) - set(got.arrays)}, {what}")


def good_files(rng: np.random.Generator, names: tuple[str, ...] = tuple(MODELS)) -> str:
    """Every frame of a file of any format has the results that it has alone."""
    name = names[rng.integers(len(names))]
    file, calc = model(name)
    frames = random_frames(rng, name)
    with scratch() as place:
        suffix = ["xyz", "extxyz", "traj", "xyz.gz"][rng.integers(4)]
        source, output = (
            place / f"in.{suffix}",
            place / ["out.xyz", "new/out.extxyz", "o u t.xyz.gz"][rng.integers(3)],
        )
        if suffix == "traj":  # which holds no columns but ASE's own
            for atoms in frames:
                atoms.arrays.pop("REF_forces", None)
            write(source, frames)
        else:
            write(source, frames, format="extxyz")
        before = source.read_bytes()
        prefix = ["scfmlip_", "", "a-b.c_", "MACE_"][rng.integers(4)]
        options = ["--batch-size", rng.integers(1, 5), "--prefix", prefix]
        chosen = slice(None)
        if rng.random() < 0.3:
            start = int(rng.integers(len(frames)))
            options += [
                "--index",
                [f"{start}:", f"{start}", f"::{start + 1}", f"-{start + 1}:"][rng.integers(4)],
            ]
            text = options.pop()
            options[-1] = f"--index={text}"
            parts = [int(p) if p else None for p in text.split(":")]
            chosen = slice(*parts) if ":" in text else slice(start, start + 1)
        within = suffix != "traj" and chosen == slice(None) and rng.random() < 0.3
        if within:
            output = source
            options += ["--overwrite"]
        known = calc if rng.random() < 0.9 else None
        status, out, err = run([source, "--model", file, "-o", output, *options], known)
        check(status == 0, f"status {status}: {err}")
        check(within or source.read_bytes() == before, "the input was changed")
        got = read(output, ":", format="extxyz")
        assert isinstance(got, list)
        expected = frames[chosen]
        check(len(got) == len(expected), f"{len(got)} of {len(expected)} frames")
        check(f"wrote {len(expected)} frames" in out, out)
        for one, want in zip(got, expected, strict=True):
            results = one.calc.results if one.calc is not None else {}
            one.info |= {
                k: v
                for k, v in results.items()
                if np.shape(v)[:1] != (len(one),) or k in ("stress", "dipole")
            }
            one.arrays.update(
                {k: v for k, v in results.items() if k in ("forces", "charges", "energies", "magmoms")}
            )
            compare(one, want, calc, prefix, f"{name}, prefix {prefix!r}, {want.pbc.tolist()}")
    return f"right, {name}"


def _cut(rng, content, n):
    return content[: int(rng.integers(1, max(2, len(content) - 40)))]


def _empty(rng, content, n):
    return [b"", b"\n", b"\n\n\n", b"   \n"][rng.integers(4)]


def _counts(rng, content, n):
    lines = content.split(b"\n")
    places = [i for i, line in enumerate(lines) if line.strip().isdigit()]
    number = int(lines[places[-1] if rng.random() < 0.5 else places[0]])
    lines[places[0]] = str([number + 1, number - 1, 0, -1, 10**9, 3.5][rng.integers(6)]).encode()
    return b"\n".join(lines)


def _numbers(rng, content, n):
    lines = content.split(b"\n")
    at = [i for i, line in enumerate(lines) if line[:1].isalpha() and b"=" not in line]
    i = at[rng.integers(len(at))]
    words = lines[i].split()
    words[rng.integers(1, 4)] = [b"nan", b"inf", b"x", b"1.0.0", b"*****", b"1e400"][rng.integers(6)]
    lines[i] = b" ".join(words)
    return b"\n".join(lines)


def _element(rng, content, n):
    lines = content.split(b"\n")
    at = [i for i, line in enumerate(lines) if line[:1].isalpha() and b"=" not in line]
    i = at[rng.integers(len(at))]
    words = lines[i].split()
    words[0] = [b"Au", b"Xx", b"q", b"8", b"-"][rng.integers(5)]
    lines[i] = b" ".join(words)
    return b"\n".join(lines)


def _binary(rng, content, n):
    junk = rng.bytes(int(rng.integers(1, 400)))
    at = int(rng.integers(len(content)))
    return [junk, content[:at] + junk + content[at:], b"\x1f\x8b" + junk, b"PK\x03\x04" + junk][
        rng.integers(4)
    ]


def _flags(rng, content, n):
    bad = [b'pbc="yes no T"', b'pbc="T T"', b"pbc=2", b'pbc="T T X"', b"pbc=", b'pbc="1 1 2"']
    start = content.index(b'pbc="')
    return content[:start] + bad[rng.integers(len(bad))] + content[content.index(b'"', start + 5) + 1 :]


def _lattice(rng, content, n):
    bad = [
        b'Lattice="1 0 0 0 1 0"',
        b'Lattice="a"',
        b'Lattice="nan 0 0 0 5 0 0 0 5"',
        b'Lattice="0 0 0 0 0 0 0 0 0"',
    ]
    start = content.index(b'Lattice="')
    end = content.index(b'"', start + 9) + 1
    found = content[:start] + bad[rng.integers(len(bad))] + content[end:]
    return found.replace(b'pbc="F F F"', b'pbc="T T T"')


def _input(rng, content, n):
    bad = [
        b"charge=x",
        b"charge=nan",
        b"charge=0 total_charge=1",
        b'charge="1 2"',
        b'external_field="1 2"',
        b"charge=T",
    ]
    return content.replace(b"REF_energy=", bad[rng.integers(len(bad))] + b" REF_energy=", 1)


def _blank(rng, content, n):
    lines = content.split(b"\n")
    at = [i for i, line in enumerate(lines) if line.strip().isdigit()]
    lines.insert(at[-1], b"")
    return b"\n".join(lines) if len(at) > 1 else b"\n" + content


SPOILT = [_cut, _empty, _counts, _numbers, _element, _binary, _flags, _lattice, _input, _blank]


def bad_files(rng: np.random.Generator) -> str:
    """Status 2 or 1, a line that names file or frame, nothing lost; with --skip-bad the others are right."""
    file, calc = model("short_range")
    frames = random_frames(rng, "short_range", 2)
    for atoms in frames:
        atoms.info.pop("external_field", None)
    with scratch() as place:
        source, output = place / "in.xyz", place / "out.xyz"
        write(source, frames, format="extxyz")
        spoil = SPOILT[rng.integers(len(SPOILT))]
        source.write_bytes(spoil(rng, source.read_bytes(), len(frames)))
        overwrite = rng.random() < 0.3
        if overwrite:
            output.write_text("of yesterday")
        before = files(place)
        skip = rng.random() < 0.5
        options = [*["--skip-bad"] * skip, *["--overwrite"] * overwrite]
        status, _, err = run([source, "--model", file, "-o", output, *options], calc)
        what = f"{spoil.__name__[1:]}, skip {skip}, status {status}: {err}"
        after = files(place)
        check(after["in.xyz"] == before["in.xyz"], f"the input was changed, {what}")
        check(status in (0, 1, 2), what)
        check("Traceback" not in err and "--debug" not in err, what)
        if status == 0 or (
            status == 1 and skip and "wrote" not in after and "nothing was written" not in err
        ):
            written = read(output, ":")
            assert isinstance(written, list)
            for atoms in written:
                check(np.isfinite(atoms.info["scfmlip_energy"]), what)
                lone = atoms.copy()
                lone.calc = calc
                same(atoms.info["scfmlip_energy"], lone.get_potential_energy(), 1e-6, f"energy, {what}")
            left = 0 if status == 0 else err.count("skipped:")
            check(status == 0 or left, what)
            short = len(written) + left < len(frames)
            said = "ends within a line" in err or spoil in (_cut, _counts, _empty, _binary)
            check(not short or said, f"{len(written)} of {len(frames)} frames without a word, {what}")
            return f"accepted, {spoil.__name__[1:]}, status {status}"
        last = err.strip().splitlines()[-1]
        check(last.startswith("scfmlip evaluate: "), what)
        check("in.xyz" in last or str(source) in last, f"names no file, {what}")
        check(after.get("out.xyz") == before.get("out.xyz"), f"the output was changed, {what}")
        kept = [k for k in after if k.startswith("partial-")]
        check(set(after) - {"in.xyz", "out.xyz"} == set(kept), f"left {set(after)}, {what}")
        check(all(k in err for k in kept), f"left {kept} without a word, {what}")
    return f"refused, {spoil.__name__[1:]}, status {status}"


def bad_options(rng: np.random.Generator) -> str:
    """Status 2 and a line that names the option or file; nothing is written or changed."""
    file, _ = model("short_range")
    frames = random_frames(rng, "short_range")
    with scratch() as place:
        source, output = place / "in.xyz", place / "out.xyz"
        write(source, frames, format="extxyz")
        (place / "old.xyz").write_text("of yesterday")
        (place / "empty.model").write_bytes(b"")
        (place / "junk.model").write_bytes(rng.bytes(100))
        (place / "junk.safetensors").write_bytes(rng.bytes(100))
        (place / "cut.safetensors").write_bytes(file.read_bytes()[: int(rng.integers(1, 3000))])
        n = len(frames)
        bad: list[tuple[list[Any], str]] = [
            (
                [
                    "--index",
                    ["x", "1.5", "::0", str(n), str(-n - 1), f"{n}:", "", "1:2:3:4", "0,1"][rng.integers(9)],
                ],
                "index|frame",
            ),
            (["--batch-size", ["0", "-1", "x", "1.5", ""][rng.integers(5)]], "batch-size"),
            (["--device", ["tpu", "cuda:77", "", "meta"][rng.integers(4)]], "device"),
            (["--dtype", ["half", "", "float16"][rng.integers(3)]], "dtype"),
            (["--head", ["x", "", "default"][rng.integers(3)]], "head"),
            (["--charge", ["nan", "inf", "x", ""][rng.integers(4)]], "charge"),
            (["--spin", ["nan", "x", ""][rng.integers(3)]], "spin"),
            (["--prefix", ["a b", 'x"', "a=b", "a\n", "é "][rng.integers(5)]], "prefix"),
            (["--nonsense"], "nonsense"),
            (
                [
                    "--model",
                    place
                    / ["none.model", "empty.model", "junk.model", "junk.safetensors", "cut.safetensors", "."][
                        rng.integers(6)
                    ],
                ],
                "model|safetensors|" + place.name,
            ),
            (
                [
                    "-o",
                    [
                        source,
                        place / "old.xyz",
                        place,
                        place / "in.xyz/x.xyz",
                        place / "x.cif",
                        place / "x.traj",
                        "",
                    ][rng.integers(7)],
                ],
                "in.xyz|old.xyz|x.cif|x.traj|folder|" + place.name,
            ),
        ]
        options, named = bad[rng.integers(len(bad))]
        before = files(place)
        status, _, err = run([source, "--model", file, "-o", output, *options])
        what = f"{options}, status {status}: {err}"
        check(status == 2, what)
        check("Traceback" not in err and "--debug shows" not in err, what)
        last = err.strip().splitlines()[-1]
        check(last.startswith("scfmlip"), what)
        check(any(word in last for word in named.split("|")), f"names not what is wrong, {what}")
        check(files(place) == before, f"files changed: {set(files(place)) ^ set(before)}, {what}")
    return "refused"
