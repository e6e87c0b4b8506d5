"""Charge, spin, field and head: the names they have in files, and what they may be."""

import numpy as np
import pytest

pytest.importorskip("ase", reason="needs ASE")

from ase import Atoms
from ase.build import molecule

from scfmlip.mace_torch.inputs import (
    check_spin,
    input_of,
    read_embedded,
    read_input,
    resolve_head,
    set_default,
)


@pytest.mark.parametrize(
    ("key", "which"),
    [
        ("charge", "total_charge"),
        ("total_charge", "total_charge"),
        ("REF_total_charge", "total_charge"),
        ("Charge", "total_charge"),
        ("spin", "total_spin"),
        ("total_spin", "total_spin"),
        ("multiplicity", "total_spin"),
        ("external_field", "external_field"),
        ("head", "head"),
        # those of atoms, another sign, other things
        ("charges", None),
        ("initial_charges", None),
        ("magmom", None),
        ("electric_field", None),
        ("counter_charge", None),
        ("external_charges", None),
        ("scfmlip_total_charge", None),
        ("config_total_charge_weight", None),
    ],
)
def test_names(key, which):
    assert input_of(key) == which


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int64(1), np.array(1.0), np.array([1])])
def test_numbers(value):
    assert read_input({"charge": value}, "total_charge") == 1.0


@pytest.mark.parametrize(
    "value", ["1", "one", "", True, np.bool_(True), np.nan, np.inf, [1, 2], [], 1j, {"q": 1}, "None"]
)
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match=r"atoms.info\['charge'\] must be a number, got"):
        read_input({"charge": value}, "total_charge")


@pytest.mark.parametrize("value", ["x", [0, 0, "x"], [1, 2], [0, 0, np.nan], [[1, 2, 3]], "0 0 1"])
def test_what_is_no_field(value):
    with pytest.raises(ValueError, match="must be 3 numbers, or one along z"):
        read_input({"external_field": value}, "external_field")


def test_one_value_under_several_names():
    assert read_input({"charge": -1, "total_charge": -1.00000001, "REF_charge": None}, "total_charge") == -1
    assert read_input({"comment": "x"}, "total_charge") is None
    assert read_input({"charge": None}, "total_charge") is None
    assert read_input({"external_field": 0.1}, "external_field").tolist() == [0, 0, 0.1]
    with pytest.raises(ValueError, match=r"'charge'\] = 1.0 and atoms.info\['total_charge'\] = 0.0 are both"):
        read_input({"charge": 1, "total_charge": 0}, "total_charge")
    with pytest.raises(ValueError, match="are both the head"):
        read_input({"head": "a", "Head": "b"}, "head")


def test_a_named_key_is_the_only_one():
    assert read_input({"q": 2, "charge": 0}, "total_charge", "q") == 2
    assert read_input({"comment": "x"}, "total_charge", "q") is None
    with pytest.raises(ValueError, match="holds 'charge' but not 'q', which was named"):
        read_input({"charge": 1}, "total_charge", "q")


def test_a_level_is_a_label_first():
    info = {"REF_fermi_level": -4.0}
    assert read_input(info, "fermi_level") == -4.0
    assert read_input({**info, "fermi_level": -3.0}, "fermi_level") == -3.0
    atoms = Atoms("H", info=info)
    set_default(atoms, "fermi_level", -2.0)
    assert read_input(atoms.info, "fermi_level") == -2.0


def test_defaults_do_not_replace():
    atoms = Atoms("H", info={"total_charge": 1})
    set_default(atoms, "total_charge", 0)
    set_default(atoms, "total_spin", None)
    assert atoms.info == {"total_charge": 1}
    set_default(atoms, "total_spin", 2)
    assert atoms.info == {"total_charge": 1, "spin": 2}


@pytest.mark.parametrize(
    ("charge", "spin", "message"),
    [
        (0, 1, None),
        (0, 3, None),
        (1, 2, None),
        (-1, 4, None),
        (0.5, 1, None),
        (0.5, 2, None),
        (0, 0, "1, 2, 3, ...; got 0"),
        (0, -1, "got -1"),
        (0, 1.5, "got 1.5"),
        (0.5, 1.5, "got 1.5"),
        (0, 2, r"10 electrons \(charge 0\) cannot have the spin multiplicity 2 .* can have 1, 3, 5, \.\.\."),
        (1, 1, r"9 electrons \(charge 1\) cannot .* 0 unpaired electrons\); they can have 2, 4, 6"),
        (0, 13, "12 unpaired electrons"),
        (10, 1, None),
        (9, 2, None),
        (9, 4, "they can have 2$"),
    ],
)
def test_spins_of_water(charge, spin, message):
    water = molecule("H2O")
    if message is None:
        check_spin(water, charge, spin, "water")
        return
    with pytest.raises(ValueError, match=f"water: .*{message}"):
        check_spin(water, charge, spin, "water")


def test_a_metal_has_any_number_of_electrons():
    metal = Atoms("Al", cell=[4, 4, 4], pbc=True)
    check_spin(metal, 0, 1, "metal")
    check_spin(metal, 0, 2, "metal")
    with pytest.raises(ValueError, match="got 0"):
        check_spin(metal, 0, 0, "metal")


def test_heads():
    heads = ["pbe", "scan"]
    assert resolve_head(heads, None, {"head": "pbe"}) == "pbe"
    # an argument comes first, as in mace-torch
    assert resolve_head(heads, "scan", {"head": "pbe"}) == "scan"
    assert resolve_head(heads, "scan", {"head": "unknown"}) == "scan"
    assert resolve_head(["only"], None, {}) == "only"
    assert resolve_head(["pt_head", "Default"], None, {}) == "Default"
    with pytest.raises(ValueError, match="no head 'PBE'; it has 'pbe', 'scan'; did you mean 'pbe'"):
        resolve_head(heads, "PBE")
    with pytest.raises(ValueError, match=r"no head 'r2' \(atoms.info\['head'\]\); it has 'pbe', 'scan'$"):
        resolve_head(heads, None, {"head": "r2"})
    with pytest.raises(ValueError, match="has the heads 'pbe', 'scan': choose one"):
        resolve_head(heads, None, {})


def test_what_networks_embed():
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]], info={"T": 300.0})
    atoms.arrays["label"] = np.array([1, 2])
    specs = {
        "total_charge": {"per": "graph"},
        "elec_temp": {"per": "graph", "key": "T"},
        "label": {"per": "atom"},
    }
    found = read_embedded(atoms, specs)
    assert found["elec_temp"] == 300.0
    assert found["label"].tolist() == [[1.0], [2.0]]
    assert set(found) == {"elec_temp", "label"}
    del atoms.info["T"]
    with pytest.raises(ValueError, match=r"it lacks atoms.info\['T'\]"):
        read_embedded(atoms, specs, "it")
