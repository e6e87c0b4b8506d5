"""The demo's trained models: what they are worth on a frame they have not seen."""

import pytest

pytest.importorskip("mace", reason="needs mace-torch")

from scfmlip.cli.demo.physics import compare_with_dft, draw_response, run_dynamics


def test_errors_on_an_unseen_interface():
    rows = compare_with_dft()
    assert [row["model"] for row in rows] == ["charge equilibration", "fixed point"]
    for row in rows:
        assert abs(row["energy"]) < 10
        assert row["forces"] < 0.25
        assert row["charges"] < 0.04
        assert row["dipole"] == pytest.approx(row["reference"], abs=0.2)


def test_energy_is_conserved():
    assert abs(run_dynamics()["drift of the total energy, meV/atom"]) < 0.1


@pytest.mark.slow
def test_picture(tmp_path):
    assert draw_response(tmp_path).stat().st_size > 10_000
