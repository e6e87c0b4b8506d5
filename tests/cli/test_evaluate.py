"""``scfmlip evaluate`` on real structures: numbers, metadata, refusals."""

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")

from ase.io import read, write
from interfaces.polar_models import random_frames, shared_polar_model

from scfmlip.ase import Calculator
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
