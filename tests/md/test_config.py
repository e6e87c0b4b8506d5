"""Options of a run: what they may be, and what is said of those that are not."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("mace", reason="needs mace-torch")

from scfmlip.md import MdConfig, Ramp, config_from_dict, config_to_dict, load_config
from scfmlip.md.run import plain_config
from scfmlip.md.schedule import Schedule, value_at

LEAST = {"structure": "a.xyz", "model": "m.safetensors", "steps": 10}


def test_defaults():
    config = config_from_dict(LEAST)
    assert (config.ensemble, config.timestep, config.trajectory) == ("nve", 0.5, "trajectory.xyz")
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tempurature": 300}, r"no option 'tempurature'; did you mean 'temperature'\?"),
        ({"steps": -1}, "steps must be a number of at least 0"),
        ({"steps": 1.5}, "steps must be int"),
        ({"timestep": 0}, "timestep must be a positive number"),
        ({"timestep": "fast"}, "timestep must be float"),
        ({"ensemble": "nvt"}, r"ensemble must be one of \['nve', 'langevin'"),
        ({"ensemble": "langevin"}, "ensemble: langevin needs temperature, K, above 0"),
        ({"ensemble": "npt", "temperature": 0}, "needs temperature"),
        ({"velocities": "thermal"}, "velocities: thermal needs temperature"),
        ({"ensemble": "npt", "temperature": 1, "fixed_atoms": [1]}, "counts every atom as free"),
        ({"fixed_atoms": [-1]}, "numbers of atoms from 0 on"),
        ({"barostat_cell": "axes"}, "needs barostat_axes"),
        ({"barostat_axes": [1]}, "needs barostat_axes"),
        ({"barostat_cell": "axes", "barostat_axes": [3]}, "of 0, 1 and 2"),
        ({"warm_start": "cubic"}, "warm_start must be one of"),
        ({"warm_start": "extended_lagrangian", "warm_start_order": 2}, "must be 3 to 7 with"),
        ({"warm_start": "none", "warm_start_order": 2}, "has no meaning with warm_start: none"),
        ({"warm_start_order": 11}, "must be 0 to 10"),
        ({"fermi_level": "high"}, "fermi_level must be float or Ramp"),
        (
            {"fermi_level": {"times": [0, 1], "values": [0, 1], "shape": 1}},
            "fermi_level has no option 'shape'",
        ),
        (
            {"fermi_level": {"times": [0, 1], "values": [0]}},
            "fermi_level: a ramp needs as many values as times",
        ),
        ({"fermi_level": {"times": [1, 0], "values": [0, 1]}}, "times of a ramp must increase"),
        ({"fermi_level": {"times": [0], "values": [[0, 0, 1]]}}, "must be numbers, eV"),
        ({"external_field": [0, 1]}, "three numbers or one along z"),
        ({"external_field": "up"}, "three numbers or one along z"),
        ({"external_field": {"times": [0], "values": ["up"]}}, "values must be a number"),
        ({"field_convention": "si"}, "field_convention must be one of"),
        ({"trajectory": "run.dcd"}, "must be a name in the output folder that ends in"),
        ({"trajectory": "../run.xyz"}, "must be a name in the output folder"),
        ({"trajectory": "last_good.xyz"}, "is another file of the run"),
        ({"counter_charge": [3, 2]}, "counter_charge must be a lower and an upper end"),
        ({"skin": -1}, "skin must be a number of at least 0"),
        ({"output": ""}, "output must be the name of a folder"),
        ({"log_interval": 0}, "log_interval must be a number of at least 1"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        config_from_dict({**LEAST, **change})


def test_missing_options_are_named():
    with pytest.raises(ValueError, match="the run lacks structure, model"):
        config_from_dict({"steps": 1})


def test_files(tmp_path):
    path = tmp_path / "config.yaml"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_config(path)
    path.write_text("structure: a.xyz\nmodel: m\nsteps: 3\nsteps: 4\n")
    with pytest.raises(ValueError, match=r"config.yaml cannot be read: .*'steps' is set twice"):
        load_config(path)
    path.write_text("3")
    with pytest.raises(ValueError, match="holds no options"):
        load_config(path)
    path.write_text("{structure: a.xyz, model: m, steps: 3, fermi_level: {times: [0, 1e3], values: [-1, 1]}}")
    config = load_config(path)
    assert config.fermi_level == Ramp((0.0, 1000.0), (-1, 1))
    assert plain_config(config)["fermi_level"] == {"times": [0.0, 1000.0], "values": [-1, 1]}


def test_ramps():
    """Straight between points, constant outside; fields reach the atoms in mace's sign."""
    level, field = {"times": [10, 20], "values": [1, 2]}, {"times": [0, 2], "values": [0.1, [0, 1, 0]]}
    config = config_from_dict({**LEAST, "fermi_level": level})
    for time, want in ((0, 1), (10, 1), (12.5, 1.25), (20, 2), (30, 2)):
        assert value_at(config.fermi_level, time) == pytest.approx(want)
    assert Schedule(config).changes
    with pytest.raises(ValueError, match="all numbers, or all lists of three"):
        config_from_dict({**LEAST, "external_field": field})
    field["values"][0] = [0, 0, 0.1]
    for convention, sign in (("mace", 1), ("physical", -1)):
        config = config_from_dict({**LEAST, "external_field": field, "field_convention": convention})
        np.testing.assert_allclose(Schedule(config)(1.0)["external_field"], sign * np.array([0, 0.5, 0.05]))
    constant = config_from_dict({**LEAST, "external_field": 0.2})
    np.testing.assert_allclose(Schedule(constant)(5.0)["external_field"], [0, 0, 0.2])
    assert not Schedule(constant).changes
    assert Schedule(config_from_dict(LEAST))(0.0) == {}


def test_every_option_is_described():
    text = MdConfig.__doc__
    for field in dataclasses.fields(MdConfig):
        assert f"{field.name}" in text, field.name
