"""The study's splits, options, rows and page."""

import csv
from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.io import read

from bench.study.probes import ideal_image
from bench.study.report import write_report
from bench.study.rows import COLUMNS, put_rows, read_rows
from bench.study.rules import RULES, training_options
from bench.study.sets import SETS, split, write_parts
from scfmlip import units
from scfmlip.models import make_config
from scfmlip.training import config_from_dict


@pytest.mark.parametrize("which", SETS.values(), ids=SETS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_options_are_options(rule, which, tmp_path):
    config = config_from_dict(training_options(rule, which, 0, tmp_path))
    elements = list(which.charges)
    model = make_config({**config.model, "elements": elements})
    assert model.constraint == rule.constraint
    charges = [(which.charge_epochs, 0.01)] * rule.charges
    assert [(s.epochs, s.lr) for s in config.stages] == [*charges, *which.epochs]
    assert set(config.stages[0].loss) == {"charges"} or not rule.charges


def test_what_is_held_back():
    parts = split(SETS["al_water"])
    assert {k: len(v) for k, v in parts.items() if k in ("field", "probe")} == {"field": 4, "probe": 2}
    assert not any("efield" in a.info["config_type"] for a in parts["train"])
    assert any(a.info["config_type"] == "isolated_h2o" for a in parts["train"])
    parts = split(SETS["sio2_vacancy"])
    assert Counter(a.info["total_charge"] for a in parts["unseen charge"]) == {1: 10}
    assert {a.info["total_charge"] for a in parts["train"]} == {0, 2}
    for name in ("al_water", "sio2_vacancy"):
        assert all(split(SETS[name])[part] for part in ("train", "valid", "test")), name


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data says where"):
        split(SETS["au2_mgo"], tmp_path)


def test_a_split_stays_what_it_was(tmp_path):
    parts = write_parts(SETS["al_water"], tmp_path)
    assert len(read(tmp_path / "train.xyz", ":")) == len(parts["train"])
    write_parts(SETS["al_water"], tmp_path)
    with pytest.raises(ValueError, match="holds other frames"):
        write_parts(SETS["sio2_vacancy"], tmp_path)


def row(rule, quantity, value, reference="", which="au2_mgo", seed=0):
    base = dict.fromkeys(COLUMNS, "")
    return base | {
        "set": which,
        "rule": rule,
        "seed": seed,
        "quantity": quantity,
        "value": value,
        "reference": reference,
        "unit": "e",
        "train_s": "3.0",
        "epochs": "2",
        "device": "abacus",
    }


def test_the_image_of_one_ion():
    """In a cell much wider than the heights, ``-k_e q^2 / 4 d``; the images of other cells add a constant."""
    charge, side, heights = 0.5, 120.0, np.array([5.0, 8.0])
    energies = ideal_image(Atoms(cell=(side, side, 60)), charge, heights, 1.5)
    energies += 0.5 * charge**2 * units.FIELD_CONSTANT * heights / side**2  # the mean field, left out there
    expected = -units.COULOMB_CONSTANT * charge**2 / (4 * heights)
    assert np.diff(energies) == pytest.approx(np.diff(expected), rel=0.03)


def test_rows_are_replaced_and_failures_forgotten(tmp_path):
    path = tmp_path / "rows.csv"
    put_rows(path, [row("local", "failed: it did", ""), row("qeq", "failed: it did too", "")])
    put_rows(path, [row("local", "a", 1.0), row("local", "b", 2.0)])
    put_rows(path, [row("local", "a", 3.0)])
    rows = read_rows(path)
    assert [(r["rule"], r["quantity"], r["value"]) for r in rows] == [
        ("qeq", "failed: it did too", ""),
        ("local", "b", "2.0"),
        ("local", "a", "3.0"),
    ]
    with open(path) as file:
        assert next(csv.reader(file)) == list(COLUMNS)


def test_the_page_says_what_the_rows_say(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.study.report.RESULTS", tmp_path)
    shift = "Au2 charge, doped - undoped"
    rows = [row("local", shift, 0.01, -0.27), row("qeq", "failed: no convergence", "")]
    for seed, value in enumerate((-0.26, -0.28)):
        rows.append(row("fixed-point", shift, value, -0.27, seed=seed))
        rows.append(row("fixed-point", "Au2 charge, doped", value, -0.18, seed=seed))
        rows.append(row("fixed-point", "Au2 charge, undoped", 0.09, 0.09, seed=seed))
    put_rows(tmp_path / "rows.csv", rows)
    write_report(tmp_path / "rows.csv", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| local | no (-4 % of the shift) |" in page
    assert "| fixed-point | yes (100 % of the shift) |" in page
    assert "-0.270 ± 0.014" in page
    assert "* au2_mgo, qeq, seed 0: failed: no convergence" in page
    assert (tmp_path / "au2_charge.png").stat().st_size > 0
