"""Options: every mistake is named."""

import pytest

from scfmlip.training import config_from_dict, config_to_dict, load_config

GOOD = {
    "data": {"train": "a.xyz"},
    "model": {"rule": "local"},
    "stages": [{"epochs": 3, "loss": {"energy": 1, "forces": "1e2"}}],
}


def test_defaults_and_round_trip():
    config = config_from_dict(GOOD)
    assert config.data.train == ("a.xyz",)
    assert config.data.energy_key == "REF_energy"
    assert config.stages[0].loss == {"energy": 1.0, "forces": 100.0}
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.1}, "no option 'lr'"),
        ({"data": {"train": "a.xyz", "energy_kye": "E"}}, "did you mean 'energy_key'"),
        ({"data": {"train": "a.xyz", "valid_fraction": 1.0}}, "valid_fraction"),
        ({"stages": []}, "at least one stage"),
        ({"stages": [{"epochs": 0}]}, r"stages\[0\]: epochs must be a number of at least 1"),
        ({"stages": [{"epochs": 1, "lr": "fast"}]}, r"stages\[0\].lr"),
        ({"stages": [{"epochs": 1, "loss": {"enrgy": 1}}]}, "no loss term 'enrgy'; there are energy"),
        (
            {"stages": [{"epochs": 1, "loss": {"energy": -1}}]},
            r"stages\[0\]: loss.energy must be a number of at least 0",
        ),
        ({"stages": [{"epochs": 1, "loss": {"energy": 0}}]}, "weight above 0"),
        ({"stages": [{"epochs": 1, "scf": "magic"}]}, r"stages\[0\].scf must be one of"),
        ({"model": {}}, "either model"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size must be int"),
        ({"optimizer": {"betas": [0.9]}}, "betas"),
        ({"schedule": {"name": "linear"}}, "schedule.name must be one of"),
        ({"ema_decay": 1.5}, "ema_decay"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        config_from_dict({**GOOD, **change})


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_config(tmp_path / "none.yaml")
    for text, message in (("a: [", "no YAML"), ("- 1", "no options")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_config(tmp_path / "bad.yaml")
