"""What LAMMPS is refused with, how a run that fails ends, and the example."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.ranks import ROOT, run_ranks, start

pytest.importorskip("mpi4py", exc_type=ImportError)
pytest.importorskip("lammps", exc_type=(ImportError, OSError))

from models.cases import ELEMENTS, make_model

import scfmlip
from interfaces.lammps.engines import compare, make_lammps, restricted
from interfaces.lammps.on_ranks import crystal, embedding_model
from scfmlip.cli import main
from scfmlip.interfaces.lammps import attach, start_lammps
from scfmlip.interfaces.lammps.script import split_script


@pytest.fixture
def lmp():
    made = make_lammps(restricted(crystal()), ELEMENTS)
    yield made
    made.close()


def silent():
    return start_lammps(["-log", "none", "-screen", "none"])


def test_units_and_box():
    lmp = silent()
    with pytest.raises(ValueError, match="units metal"):
        attach(lmp, make_model("short_range"))
    lmp.command("units metal")
    with pytest.raises(ValueError, match="no simulation box"):
        attach(lmp, make_model("short_range"))
    lmp.close()
    with pytest.raises(TypeError, match=r"lammps\.lammps"):
        attach(None, make_model("short_range"))


def test_other_forces_are_refused(lmp):
    lmp.command("pair_style lj/cut 5.0")
    with pytest.raises(ValueError, match="pair_style lj/cut"):
        attach(lmp, make_model("short_range"), elements=ELEMENTS)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        (["H", "O"], "3 atom types, elements names 2"),
        (["H", "O", "Cu"], "atom type 3 is Cu"),
        (["O", "H", "Al"], "has the mass 1.008, but O has"),
    ],
)
def test_types_are_elements_of_the_model(lmp, elements, message):
    with pytest.raises(ValueError, match=message):
        attach(lmp, make_model("short_range"), elements=elements)


def test_inputs(lmp):
    with pytest.raises(ValueError, match=r"charge \(total charge"):
        attach(lmp, make_model("qeq"))
    with pytest.raises(ValueError, match="external_field must be 3 numbers"):
        attach(lmp, make_model("local"), external_field=[0.1])
    with pytest.raises(ValueError, match="mesh is for models with charges"):
        attach(lmp, make_model("short_range"), mesh=True)
    with pytest.raises(ValueError, match="wave vectors it was trained with"):
        attach(lmp, make_model("recursion"), charge=0, spin=1, mesh=True)
    with pytest.raises(ValueError, match="no potentials at atoms"):
        attach(lmp, make_model("short_range"), potential=True)


def test_charges_outside_the_model(lmp):
    ions = {"external_charges": [0.5], "external_positions": [[0.1, 0.2, 3.0]]}
    with pytest.raises(ValueError, match="does not feel external charges"):
        attach(lmp, make_model("short_range"), **ions)
    with pytest.raises(ValueError, match="belong together"):
        attach(lmp, make_model("local"), external_charges=[0.5])
    with pytest.raises(ValueError, match="must be finite"):
        attach(lmp, make_model("local"), **{**ions, "external_charges": [np.nan]})
    model = make_model("local")
    attached = attach(lmp, model, **ions)
    lmp.command("run 0")
    assert compare(lmp, attached, restricted(crystal()), model, **ions)["external_forces"] < 1e-12
    ions = {"external_charges": [0.5, -0.2], "external_positions": [[0.1, 0.2, 3.0], [2.0, 1.0, 1.0]]}
    attached.set_external_charges(*ions.values())
    lmp.command("run 0")
    assert compare(lmp, attached, restricted(crystal()), model, **ions)["external_forces"] < 1e-12
    attached.set_external_charges([], [])
    lmp.command("run 0")
    assert compare(lmp, attached, restricted(crystal()), model)["forces"] < 1e-12


def test_charges_outside_the_model_from_a_file(tmp_path, monkeypatch, capsys):
    """The command line hands them to `attach`."""
    script, model, ions = (tmp_path / name for name in ("in.box", "model.safetensors", "ions.txt"))
    script.write_text(
        "units metal\nregion b block 0 9 0 9 0 9\ncreate_box 1 b\ncreate_atoms 1 single 1 1 1\n"
        "mass 1 15.999\nrun 0\n"
    )
    scfmlip.models.save(make_model("local"), model)
    attached = []

    def keep(*arguments, **options):
        attached.append(attach(*arguments, **options))
        return attached[-1]

    monkeypatch.setattr("scfmlip.interfaces.lammps.script.attach", keep)
    command = ["lammps", str(script), "--model", str(model), "--log", "none", "--charge", "0"]
    command += ["--external-charges", str(ions)]
    assert main(command) == 2
    assert "there is no file of external charges" in capsys.readouterr().err
    for text, words in (("0.5 1 2\n", "lines of four"), ("0.5 1 2 x\n", "numbers"), ("1 2 3 nan", "finite")):
        ions.write_text(text)
        assert main(command) == 2
        assert words in capsys.readouterr().err
    ions.write_text("# of a membrane\n0.5 0.1 0.2 3.0\n-0.2 2 1 1\n")
    assert main(command) == 0
    given = attached[0].force.inputs
    assert given["external_charges"].tolist() == [0.5, -0.2]
    assert given["external_positions"].tolist() == [[0.1, 0.2, 3.0], [2.0, 1.0, 1.0]]


def test_numbers_that_attach_does_not_take(lmp):
    temperature = {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}
    with pytest.raises(ValueError, match="embeds elec_temp, which LAMMPS does not know"):
        attach(lmp, embedding_model({"elec_temp": temperature}))


def test_elements_by_masses_and_one_rank(lmp):
    """Also what LAMMPS's own output shows."""
    model = make_model("affine")
    attached = attach(lmp, model, charge=0.0, potential=True)
    lmp.command("run 0")
    errors = compare(lmp, attached, restricted(crystal()), model, charge=0.0)
    assert errors["forces"] < 1e-12
    assert errors["charges"] < 1e-12
    dipole = [lmp.extract_fix("scfmlip", 0, 1, nrow=i) for i in range(3)]
    np.testing.assert_allclose(dipole, [attached.results[f"dipole_{x}"] for x in "xyz"])
    shown = lmp.numpy.extract_atom("d_scfmlip_potential")[: len(attached.results["charges"])]
    np.testing.assert_allclose(shown, attached.results["electrostatic_potential"].numpy())
    # the next run starts from what this one found, which lies with LAMMPS's atoms
    rows = attached.results["density_coefficients"]
    guess = attached.force.states.guess(len(rows), rows)
    assert guess is not None
    assert torch.equal(guess, rows)


def test_rerun_and_minimize(lmp, tmp_path):
    """Frames that have nothing to do with each other, under numbers that follow each other; relaxation."""
    model = make_model("short_range")
    attached = attach(lmp, model)
    atoms, energies, rng = restricted(crystal()), [], np.random.default_rng(0)
    atoms.calc = scfmlip.ase.Calculator(model)
    dump = tmp_path / "frames.dump"
    with open(dump, "w") as file:
        for step in range(1, 4):
            atoms.positions += rng.normal(scale=0.6, size=(16, 3))
            atoms.wrap(eps=1e-12)
            energies.append(atoms.get_potential_energy())
            cell = atoms.cell.array
            file.write(f"ITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n16\n")
            file.write(box_lines(cell) + "ITEM: ATOMS id x y z\n")
            for i, place in enumerate(atoms.positions, 1):
                file.write(f"{i} " + " ".join(f"{x:.17g}" for x in place) + "\n")
    told = []
    tell = lmp.fix_external_set_energy_global
    lmp.fix_external_set_energy_global = lambda fix, energy: (told.append(energy), tell(fix, energy))
    lmp.command(f"rerun {dump} dump x y z")
    np.testing.assert_allclose(told, energies, rtol=1e-12)
    before = lmp.get_thermo("pe")
    lmp.command("minimize 0 1e-6 5 50")
    assert lmp.get_thermo("pe") < before
    errors = compare(lmp, attached, atoms, model)
    assert errors["energy"] < 1e-12


def box_lines(cell):
    """Of a dump, for a restricted cell."""
    (x, _, _), (xy, y, _), (xz, yz, z) = cell
    low = [min(0, xy, xz, xy + xz), min(0, yz), 0]
    high = [x + max(0, xy, xz, xy + xz), y + max(0, yz), z]
    lines = "\n".join(f"{a:.17g} {b:.17g} {t:.17g}" for a, b, t in zip(low, high, (xy, xz, yz), strict=True))
    return f"ITEM: BOX BOUNDS xy xz yz pp pp pp\n{lines}\n"


def test_forces_that_are_none_end_the_run(lmp):
    attached = attach(lmp, make_model("short_range"))
    lmp.commands_string("fix nve all nve\nrun 2")
    for parameter in attached.model.parameters():
        parameter.fill_(torch.nan)
    with pytest.raises(RuntimeError, match=r"step 3: 16 atoms have forces that are NaN"):
        lmp.command("run 10 pre no")
    assert lmp.extract_global("ntimestep") == 3


def test_a_solve_that_fails_says_at_which_step(lmp):
    import copy
    import dataclasses

    model = copy.deepcopy(make_model("mlp"))
    model.rule.config = dataclasses.replace(model.rule.config, max_iterations=1)
    attach(lmp, model, charge=0.0)
    with pytest.raises(RuntimeError, match=r"step 0: .*did not reach the tolerance"):
        lmp.command("run 1")


def test_where_the_model_comes_in():
    assert split_script("a\n  run 1\nrun 2\n") == ("a\n", "  run 1\nrun 2\n")
    assert split_script("a\n# scfmlip attach\nb\nrun 2\n") == ("a\n", "# scfmlip attach\nb\nrun 2\n")
    with pytest.raises(ValueError, match="scfmlip attach"):
        split_script("units metal\n")


@pytest.mark.slow
def test_one_rank_that_fails_ends_all(tmp_path):
    """The others wait for it, and would for ever."""
    script = tmp_path / "fails.py"
    script.write_text(
        "from interfaces.lammps.engines import COMM, make_lammps, restricted\n"
        "from interfaces.lammps.on_ranks import crystal\n"
        "from models.cases import ELEMENTS, make_model\n"
        "from scfmlip.interfaces.lammps import attach\n"
        "lmp = make_lammps(restricted(crystal()), ELEMENTS)\n"
        "attached = attach(lmp, make_model('local'))\n"
        "def broken(*arguments, **options):\n"
        "    raise MemoryError('the disk is full')\n"
        "if COMM.rank == 1:\n"
        "    attached.model.rule.readout.forward = broken\n"
        "lmp.command('run 1')\n"
    )
    done = run_ranks(2, script, timeout=120, check=False)
    assert done.returncode != 0
    assert "rank 1: step 0: the disk is full" in done.stderr


def command(n, *arguments, cwd=None):
    """``scfmlip`` on several ranks."""
    return start(n, "-m", "scfmlip", *arguments, cwd=cwd)


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    """As it stands; one and two ranks print the same."""
    folder = tmp_path / "lammps"
    shutil.copytree(ROOT / "examples" / "lammps", folder)
    model = ROOT / "scfmlip" / "data" / "models" / "al_water-equilibrated.safetensors"
    rows = []
    for n in (1, 2):
        given = ("--model", model, "--elements", "Al", "O", "H", "--charge", 0, "--dtype", "float64")
        done = command(n, "lammps", "in.al_water", *given, "--var", "steps", "10", cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        rows.append([list(map(float, x)) for x in lines if len(x) == 7 and x[0] in ("0", "5", "10")])
        assert "evaluations" in done.stdout
        assert "d_scfmlip_charge" in (folder / "charges.dump").read_text()
    assert len(rows[0]) == 3
    np.testing.assert_allclose(np.array(rows[0])[:, 1:6], np.array(rows[1])[:, 1:6], rtol=1e-4)
    energies = np.array(rows[0])[:, 3]
    assert np.ptp(energies) < 2e-2


@pytest.mark.slow
def test_ranks_that_fail_together_say_so_once(tmp_path):
    model = ROOT / "scfmlip" / "data" / "models" / "al_water-equilibrated.safetensors"
    done = command(2, "lammps", Path("missing.in"), "--model", model, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("there is no LAMMPS input missing.in") == 1
    script = tmp_path / "in.lj"
    script.write_text("units lj\nregion b block 0 1 0 1 0 1\ncreate_box 1 b\nrun 1\n")
    done = command(2, "lammps", script, "--model", model, "--log", "none", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("units metal") == 1
