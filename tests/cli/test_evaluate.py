"""``scfmlip evaluate`` on real structures: numbers, metadata, refusals."""

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")

import ase.io.formats
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from mace_torch.mace_models import mace_model
from mace_torch.polar_models import batch_of, random_frames, shared_polar_model
from models.cases import batch, crystal, make_model, water
from models.test_external_charges import with_ions

import scfmlip.models
from scfmlip.ase import Calculator
from scfmlip.cli import evaluate as commands
from scfmlip.cli import main
from scfmlip.data import path

T, F = True, False
OPTIONS = {"hidden_irreps": "8x0e + 8x1o", "elements": (1, 6, 8, 13, 14)}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "polar.model"
    torch.save(shared_polar_model(**OPTIONS), file)
    return file


def evaluate(frames, model_file, folder, *options):
    write(folder / "in.xyz", frames, format="extxyz")
    arguments = ["evaluate", str(folder / "in.xyz"), "--model", str(model_file), "--quiet", "--trust-pickle"]
    status = main([*arguments, "-o", str(folder / "out.xyz"), *options])
    return status, (read(folder / "out.xyz", ":") if (folder / "out.xyz").exists() else None)


def test_equals_the_calculator_whatever_the_batch(model_file, tmp_path):
    frames = random_frames([(F, F, F), (T, T, T), (T, T, T), (F, F, F), (F, F, F)], n_atoms=5)
    for size in ("1", "3"):
        folder = tmp_path / size
        folder.mkdir()
        status, out = evaluate(frames, model_file, folder, "--batch-size", size)
        assert status == 0
        assert len(out) == len(frames)
        for atoms, got in zip(frames, out, strict=True):
            want = atoms.copy()
            want.calc = Calculator(model_file, trust_pickle=True)
            assert got.info["scfmlip_energy"] == pytest.approx(want.get_potential_energy(), rel=1e-7)
            np.testing.assert_allclose(got.arrays["scfmlip_forces"], want.get_forces(), atol=1e-6)
            np.testing.assert_allclose(got.arrays["scfmlip_charges"], want.get_charges(), atol=1e-7)
            assert got.arrays["scfmlip_atomic_dipoles"].shape == (len(atoms), 3)
            assert np.isfinite(got.arrays["scfmlip_potential"]).all()
            assert ("scfmlip_stress" in got.info) == atoms.pbc.all()


def columns(atoms):
    """Everything under the prefix, without it."""
    stores = {**atoms.info, **atoms.arrays}
    return {k.removeprefix("scfmlip_"): v for k, v in stores.items() if k.startswith("scfmlip_")}


def assert_columns(got, want):
    """All of them and no other; atoms have eight decimals in extended XYZ, before and behind the model."""
    found = columns(got)
    assert set(found) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


def test_every_column_of_a_polar_model(model_file, tmp_path):
    """mace-torch's own code on its own batch of one frame, and Coulomb's potential of its density."""
    frames = random_frames([(F, F, F), (T, T, T), (T, T, T), (F, F, F)], n_atoms=3, box=5.0)
    status, out = evaluate(frames, model_file, tmp_path, "--batch-size", "2")
    assert status == 0
    assert len(out) == len(frames)
    model = shared_polar_model(**OPTIONS)
    fast = scfmlip.accelerate(model)
    coulomb = scfmlip.Coulomb(l_max=1, sigma=float(model.atomic_multipoles_smearing_width))
    torch.set_default_dtype(torch.float64)
    for atoms, got in zip(frames, out, strict=True):
        np.testing.assert_allclose(got.positions, atoms.positions, atol=1e-8)
        found = model(batch_of([atoms], model))
        rows = found["density_coefficients"].detach()[:, [0, 3, 1, 2]]
        cell = torch.tensor(atoms.cell.array) if atoms.pbc.any() else None
        geometry = coulomb.prepare(torch.tensor(atoms.positions), cell, torch.tensor(atoms.pbc))
        want = {
            "total_charge": atoms.info["charge"],
            "energies": found["node_energy"].detach(),
            "atomic_dipoles": rows[:, 1:],
            "potential": geometry.potential(rows)[:, 0],
        }
        for name in ("energy", "dipole", "interaction_energy", "electrostatic_energy", "electron_energy"):
            want[name] = found[name].detach()[0]
        for name in ("forces", "charges", "spins"):
            want[name] = found[name].detach()
        if atoms.pbc.all():
            stress = fast(batch_of([atoms], model), compute_stress=True)["stress"]
            want["stress"] = stress.detach()[0][VOIGT]
        assert_columns(got, want)


def test_every_column_of_a_model_of_ours(tmp_path):
    """The model called frame by frame; charges beside some of the frames."""
    model = make_model("qeq")
    scfmlip.save(model, tmp_path / "m.safetensors")
    frames = [crystal(), with_ions(water(0.5)), with_ions(crystal(0.2), (0.7,)), with_ions(water(), (0.4,))]
    frames += [with_ions(water(1.0), (0.4, -0.2))]
    frames[1].info["external_field"] = np.array([0.01, 0.02, 0.03])
    status, out = evaluate(frames, tmp_path / "m.safetensors", tmp_path)
    assert status == 0
    assert len(out) == len(frames)
    for atoms, got in zip(frames, out, strict=True):
        found = model(batch(model, [atoms]), compute_stress=True, compute_potential=True)
        want = {
            "energies": found["node_energy"],
            "potential": found["electrostatic_potential"],
            "forces": found["forces"],
            "charges": found["charges"],
            "atomic_dipoles": found["density_coefficients"][:, [3, 1, 2]],
        }
        per_frame = ("energy", "dipole", "total_charge", "interaction_energy", "fermi_level")
        for name in (*per_frame, "electrostatic_energy", "response_energy", "scf_iterations"):
            want[name] = found[name][0]
        if "external_forces" in found:
            want["external_forces"] = found["external_forces"]
        if atoms.pbc.all():
            want["stress"] = found["stress"][0][VOIGT]
        assert_columns(got, want)


def test_options_reach_the_model(model_file, tmp_path):
    """Charge, multiplicity, head and dtype: as if the frames themselves said so."""
    (atoms,) = random_frames([(T, T, T)], n_atoms=3, box=5.0)
    # in cells a multiplicity may be anything: an exchange would not be refused
    atoms.info = {}
    status, (out,) = evaluate([atoms], model_file, tmp_path, "--charge", "2", "--spin", "3")
    assert status == 0
    atoms.info = {"charge": 2, "spin": 3}
    torch.set_default_dtype(torch.float64)
    model = shared_polar_model(**OPTIONS)
    want = model(batch_of([atoms], model))["energy"].item()
    torch.set_default_dtype(torch.float32)
    assert out.info["scfmlip_energy"] == pytest.approx(want, rel=1e-6)  # of rounded positions
    assert out.arrays["scfmlip_charges"].sum() == pytest.approx(2.0, abs=1e-6)
    backbone = {"r_max": 3.0, "hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "radial_MLP": [4]}
    backbone |= {"heads": ["low", "high"], "shift": [0.0, 5.0]}
    config = {"elements": ["H", "O"], "rule": "short_range", "dtype": "float64", "backbone": backbone}
    ours = scfmlip.models.build(config)
    scfmlip.save(ours, tmp_path / "heads.safetensors")
    options = ["--head", "high", "--dtype", "float32", "--overwrite"]
    status, (out,) = evaluate([water()], tmp_path / "heads.safetensors", tmp_path, *options)
    assert status == 0
    atoms = water()
    atoms.info["head"] = "high"
    want = ours(batch(ours, [atoms]))["energy"].item()
    found = out.info["scfmlip_energy"]
    assert found == pytest.approx(want, abs=1e-4)
    assert found == np.float32(found), "a number of float64"


def test_labels_that_ase_read_stay(local_file, tmp_path):
    """Energies and forces of a calculator are results there, which a copy of the atoms loses."""
    (atoms,) = waters(1)
    forces = np.arange(9.0).reshape(3, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=-3.5, forces=forces)
    status, (out,) = evaluate([atoms], local_file, tmp_path)
    assert status == 0
    assert out.info["input_energy"] == -3.5
    np.testing.assert_allclose(out.arrays["input_forces"], forces)


def test_keeps_what_the_input_held(model_file, tmp_path):
    frames = read(path("al_water.xyz"), ":1")
    status, (out,) = evaluate(frames, model_file, tmp_path)
    assert status == 0
    np.testing.assert_allclose(out.arrays["REF_forces"], frames[0].arrays["REF_forces"], atol=1e-7)
    assert out.info["REF_energy"] == pytest.approx(frames[0].info["REF_energy"])
    assert out.pbc.tolist() == [T, T, F]
    assert out.arrays["scfmlip_charges"].sum() == pytest.approx(0.0, abs=1e-6)


def test_a_bad_frame_is_named_and_nothing_is_written(model_file, tmp_path, capsys):
    frames = random_frames([(T, T, T)] * 3, n_atoms=4)
    del frames[1].info["charge"]
    status, out = evaluate(frames, model_file, tmp_path)
    assert (status, out) == (2, None)
    message = capsys.readouterr().err
    assert "frame 1 of" in message
    assert "lacks atoms.info['charge']" in message
    status, out = evaluate(frames, model_file, tmp_path, "--skip-bad")
    assert status == 1
    assert len(out) == 2
    assert "skipped: frame 1" in capsys.readouterr().err
    status, out = evaluate(frames, model_file, tmp_path, "--charge", "0", "--overwrite")
    assert status == 0
    assert len(out) == 3


def test_refusals(model_file, tmp_path, capsys):
    frames = random_frames([(T, T, T)], n_atoms=4)
    assert evaluate(frames, model_file, tmp_path)[0] == 0
    assert evaluate(frames, model_file, tmp_path)[0] == 2
    assert "exists: choose another name or pass --overwrite" in capsys.readouterr().err
    for arguments, message in (
        (["none.xyz", "--model", str(model_file)], "there is no file none.xyz"),
        ([str(tmp_path / "in.xyz"), "--model", "none.model"], "there is no model file none.model"),
        ([str(tmp_path / "in.xyz"), "--model", str(model_file), "--batch-size", "0"], "at least 1"),
    ):
        assert main(["evaluate", *arguments, "-o", str(tmp_path / "new.xyz")]) == 2
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def local_file(tmp_path_factory):
    """A model of ours."""
    file = tmp_path_factory.mktemp("local") / "local.safetensors"
    backbone = {"r_max": 3.0, "hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "radial_MLP": [4]}
    config = {"elements": ["H", "O"], "rule": "local", "density": {"l_max": 0, "sigma": 1.0}}
    scfmlip.save(scfmlip.models.build({**config, "backbone": backbone}), file)
    return file


@pytest.fixture(scope="module")
def mace_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("mace") / "mace.model"
    torch.save(mace_model(), file)
    return file


def waters(count=8, overlapping=()):
    """Labelled molecules; in some two atoms lie on each other."""
    frames = []
    for i in range(count):
        atoms = molecule("H2O")
        atoms.rattle(0.03, seed=i)
        atoms.info.update(number=i, REF_energy=-float(i))
        if i in overlapping:
            atoms.positions[2] = atoms.positions[1]
        frames.append(atoms)
    return frames


def numbers(file):
    return [int(atoms.info["number"]) for atoms in read(file, ":")]


@pytest.mark.parametrize("kind", ["ours", "mace"])
def test_one_bad_frame_costs_no_other(kind, local_file, mace_file, tmp_path, capsys):
    """It stands in the middle of a batch, and fails only when the model runs."""
    model = local_file if kind == "ours" else mace_file
    status, out = evaluate(waters(overlapping=[5]), model, tmp_path)
    printed = capsys.readouterr().err
    assert out is None
    assert status in (1, 2)
    assert "frame 5 of" in printed
    assert "atoms 1 and 2 are at the same position" in printed
    (part,) = tmp_path.glob("partial-*")
    assert part.name in printed
    assert numbers(part) == [0, 1, 2, 3, 4]
    status, out = evaluate(waters(overlapping=[5]), model, tmp_path, "--skip-bad")
    assert status == 1
    assert numbers(tmp_path / "out.xyz") == [0, 1, 2, 3, 4, 6, 7]
    printed = capsys.readouterr()
    assert "skipped: frame 5 of" in printed.err
    assert "wrote 7 frames" in printed.out
    assert "1 skipped" in printed.out
    # those of its batch have the results they have alone
    (tmp_path / "alone").mkdir()
    _, alone = evaluate(waters(), model, tmp_path / "alone", "--batch-size", "1")
    for got in out:
        want = alone[int(got.info["number"])]
        assert got.info["scfmlip_energy"] == pytest.approx(want.info["scfmlip_energy"], rel=1e-6)
        np.testing.assert_allclose(got.arrays["scfmlip_forces"], want.arrays["scfmlip_forces"], rtol=1e-5)


def test_if_every_frame_is_bad_nothing_is_written(local_file, tmp_path, capsys):
    (tmp_path / "out.xyz").write_text("results of yesterday")
    frames = waters(2, overlapping=[0, 1])
    write(tmp_path / "in.xyz", frames)
    command = ["evaluate", str(tmp_path / "in.xyz"), "--model", str(local_file), "--quiet", "--skip-bad"]
    assert main([*command, "-o", str(tmp_path / "out.xyz"), "--overwrite"]) == 1
    assert "no frame of" in capsys.readouterr().err
    assert (tmp_path / "out.xyz").read_text() == "results of yesterday"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.xyz", "out.xyz"]


def in_place(folder, model, *options):
    file = folder / "x.xyz"
    arguments = ["evaluate", str(file), "-o", str(file), "--model", str(model), "--overwrite", "--quiet"]
    return main([*arguments, *options])


def test_the_output_may_be_the_input(local_file, tmp_path, monkeypatch, capsys):
    write(tmp_path / "x.xyz", waters(overlapping=[5]), format="extxyz")
    before = (tmp_path / "x.xyz").read_bytes()
    # a bad frame, and a kill after the first batch
    assert in_place(tmp_path, local_file) == 2
    assert (tmp_path / "x.xyz").read_bytes() == before
    original, calls = commands._compute, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return original(*arguments)

    for part in tmp_path.glob("partial-*"):
        part.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(commands, "_compute", interrupted)
        assert in_place(tmp_path, local_file) == 130
    assert (tmp_path / "x.xyz").read_bytes() == before
    (part,) = tmp_path.glob("partial-*")
    assert numbers(part) == [0, 1, 2, 3]
    assert f"4 finished frames are in {part}" in capsys.readouterr().err
    # part of the file would take the place of the whole
    assert in_place(tmp_path, local_file, "--index", ":2") == 2
    assert (tmp_path / "x.xyz").read_bytes() == before
    # the labels of the frame that is left out are still somewhere
    assert in_place(tmp_path, local_file, "--skip-bad") == 1
    assert numbers(tmp_path / "x.xyz") == [0, 1, 2, 3, 4, 6, 7]
    assert [a.info["REF_energy"] for a in read(tmp_path / "x.xyz", ":")] == [0, -1, -2, -3, -4, -6, -7]
    (old,) = tmp_path.glob("before-*-x.xyz")
    assert old.read_bytes() == before


def test_a_full_disk_leaves_whole_frames(local_file, tmp_path, monkeypatch, capsys):
    write(tmp_path / "x.xyz", waters(), format="extxyz")
    before = (tmp_path / "x.xyz").read_bytes()
    opened = ase.io.formats.open_with_compression

    def full(name, mode="r"):
        file = opened(name, mode)
        if mode == "a" and file.tell() > 1500:
            with file:
                file.write("3\nhalf a fra")
            raise OSError(28, "No space left on device", name)
        return file

    monkeypatch.setattr(ase.io.formats, "open_with_compression", full)
    assert in_place(tmp_path, local_file) == 1
    monkeypatch.undo()
    assert (tmp_path / "x.xyz").read_bytes() == before
    (part,) = tmp_path.glob("partial-*")
    assert numbers(part) == list(range(len(numbers(part))))
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]


def test_frames_that_cannot_be_read(local_file, tmp_path, capsys):
    write(tmp_path / "whole.xyz", waters(overlapping=[5]), format="extxyz")
    lines = (tmp_path / "whole.xyz").read_text().splitlines(keepends=True)
    lines[5 * 3 + 3] = "H    x    0.0    0.0\n"
    file = tmp_path / "in.xyz"
    file.write_text("".join(lines[:-1]))
    command = ["evaluate", str(file), "--model", str(local_file), "-o", str(tmp_path / "out.xyz"), "--quiet"]
    assert main(command) == 2
    assert "in.xyz cannot be read: ValueError: could not convert string to float" in capsys.readouterr().err
    assert main([*command, "--skip-bad"]) == 1
    printed = capsys.readouterr().err
    assert "skipped: frame 3 of" in printed
    assert "skipped: frame 7 of" in printed
    # one that can be read and not evaluated keeps its place in the file
    assert "skipped: frame 5 of" in printed
    assert numbers(tmp_path / "out.xyz") == [0, 1, 2, 4, 6]


def test_the_ends_of_a_file_are_looked_at(local_file, tmp_path, capsys):
    """ASE stops at an empty line, and takes half of a number for a number."""
    write(tmp_path / "whole.xyz", waters(), format="extxyz")
    whole, file = (tmp_path / "whole.xyz").read_text(), tmp_path / "in.xyz"
    lines = whole.splitlines(keepends=True)
    file.write_text("".join([*lines[:10], "\n", *lines[10:], "\n"]))
    assert len(read(file, ":")) == 2
    command = ["evaluate", str(file), "--model", str(local_file), "-o", str(tmp_path / "out.xyz"), "--quiet"]
    assert main(command) == 2
    assert "an empty line stands before frame 2" in capsys.readouterr().err
    assert main([*command, "--skip-bad"]) == 0
    assert numbers(tmp_path / "out.xyz") == list(range(8))
    file.write_text(whole[:-3])
    assert main([*command, "--overwrite"]) == 0
    assert "ends within a line" in capsys.readouterr().err


def test_what_extended_xyz_cannot_hold_costs_no_result(local_file, tmp_path, capsys):
    """ASE writes an empty text so that its reader swallows the name behind it."""
    atoms = waters(1)[0]
    lost = {"empty": "", "backslash": "a\\", "two lines": "a\nb", "none": np.zeros(0), "nothing": None}
    atoms.info = {**lost, **atoms.info}
    write(tmp_path / "in.traj", atoms)
    out = tmp_path / "out.xyz"
    assert main(["evaluate", str(tmp_path / "in.traj"), "--model", str(local_file), "-o", str(out)]) == 0
    printed = capsys.readouterr().err
    for name in lost:
        assert f"left out, from frame 0 of {tmp_path / 'in.traj'} on: {name!r}" in printed
    assert {"number", "REF_energy", "scfmlip_energy", "scfmlip_dipole"} <= set(read(out).info)


def test_frames_are_named_as_ase_names_them(local_file, tmp_path, capsys):
    write(tmp_path / "in.xyz", waters(overlapping=[5]), format="extxyz")
    command = ["evaluate", str(tmp_path / "in.xyz"), "--model", str(local_file), "--quiet", "--skip-bad"]
    assert main([*command, "-o", str(tmp_path / "out.xyz"), "--index", "4:"]) == 1
    assert f"frame 1 of {tmp_path / 'in.xyz'}@4:" in capsys.readouterr().err


def test_compressed_output(local_file, tmp_path):
    write(tmp_path / "in.xyz", waters(), format="extxyz")
    command = ["evaluate", str(tmp_path / "in.xyz"), "--model", str(local_file), "--quiet"]
    assert main([*command, "-o", str(tmp_path / "out.xyz.gz")]) == 0
    assert (tmp_path / "out.xyz.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert numbers(tmp_path / "out.xyz.gz") == list(range(8))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["flags", "count", "bytes"])
def test_damage_that_ase_does_not_see(kind, skip, local_file, tmp_path, capsys):
    """It takes any flag for T, counts to whatever number it reads, and knows only UTF-8."""
    file = tmp_path / "in.xyz"
    write(file, waters(4), format="extxyz")
    lines = file.read_bytes().splitlines(keepends=True)
    if kind == "flags":
        lines[2 * 5 + 1] = lines[2 * 5 + 1].replace(b'pbc="F F F"', b'pbc="no F F"')
    elif kind == "count":
        lines[3 * 5] = b"1000000000000\n"
    else:
        lines[2 * 5 + 1] = lines[2 * 5 + 1].replace(b"number", b"\xff\xfe")
    file.write_bytes(b"".join(lines))
    command = ["evaluate", str(file), "--model", str(local_file), "-o", str(tmp_path / "out.xyz"), "--quiet"]
    status = main([*command, *["--skip-bad"] * skip])
    printed = capsys.readouterr().err
    frame, said = {"flags": (2, "no F F"), "count": (3, "in the middle"), "bytes": (2, "utf-8")}[kind]
    assert said in printed
    assert status == (1 if skip else 2)
    if skip:
        assert f"skipped: frame {frame} of {file}: " in printed
        assert numbers(tmp_path / "out.xyz") == [i for i in range(4) if i != frame]
    else:
        assert f"{file} cannot be read" in printed
        assert not (tmp_path / "out.xyz").exists()


@pytest.mark.parametrize("index", ["-5", "4", "-100", "1:2:3:4"])
def test_frames_that_are_not_there(index, local_file, tmp_path, capsys):
    """Of -5 ASE makes some frame of the four."""
    write(tmp_path / "in.xyz", waters(4), format="extxyz")
    command = [
        "evaluate",
        str(tmp_path / "in.xyz"),
        "--model",
        str(local_file),
        "-o",
        str(tmp_path / "out.xyz"),
    ]
    assert main([*command, f"--index={index}"]) == 2
    said = "the index must be such as" if index == "1:2:3:4" else f"has no frame {index}"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.xyz").exists()
