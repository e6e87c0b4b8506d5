"""Options: every mistake is named."""

import math

import pytest

from scfmlip.training import config_from_dict, config_to_dict, load_config
from scfmlip.training.plain import read_yaml

NAN = math.nan

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
        # -5 made no batches: a loss of 0, and the first epoch best for ever
        ({"valid_batch_size": -5}, "valid_batch_size must be a number of at least 0, got -5"),
        ({"batch_size": -1}, "batch_size must be a number of at least 1"),
        ({"checkpoint_interval": 0}, "checkpoint_interval must be"),
        ({"seed": -1}, "seed must be a number of at least 0"),
        ({"seed": 2**32}, "seed must be"),
        ({"huber_delta": 0.0}, "huber_delta must be a positive number"),
        ({"huber_delta": NAN}, "huber_delta must be"),
        ({"clip": NAN}, "clip must be"),
        ({"clip": 0}, "clip must be"),
        ({"patience": 0}, "patience must be"),
        ({"ema_decay": NAN}, "ema_decay must be"),
        ({"output": ""}, "output must be the name of a folder"),
        ({"data": {"train": "a.xyz", "valid_fraction": NAN}}, r"data\.valid_fraction must be"),
        ({"data": {"train": "a.xyz", "valid_fraction": -0.1}}, r"data\.valid_fraction must be"),
        ({"data": {"train": "a.xyz", "num_workers": -1}}, r"data\.num_workers must be"),
        ({"data": {"train": "a.xyz", "split_seed": -1}}, r"data\.split_seed must be"),
        ({"stages": [{"epochs": 1}, {"epochs": 1, "lr": NAN}]}, r"stages\[1\]: lr must be a positive number"),
        ({"stages": [{"epochs": 1, "lr": -0.1}]}, r"stages\[0\]: lr must be"),
        ({"stages": [{"epochs": 1, "loss": {"energy": NAN}}]}, r"stages\[0\]: loss\.energy must be"),
        ({"stages": [{"epochs": 1, "loss": {"energy": True}}]}, r"stages\[0\]: loss\.energy must be"),
        ({"stages": [{"epochs": 1, "loss": {}}]}, "weight above 0"),
        ({"optimizer": {"weight_decay": -1.0}}, r"optimizer\.weight_decay must be"),
        ({"optimizer": {"weight_decay": NAN}}, r"optimizer\.weight_decay must be"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "betas"),
        ({"optimizer": {"betas": [NAN, 0.9]}}, "betas"),
        ({"schedule": {"factor": 1.0}}, r"schedule\.factor must be"),
        ({"schedule": {"factor": NAN}}, r"schedule\.factor must be"),
        ({"schedule": {"patience": -1}}, r"schedule\.patience must be"),
        ({"schedule": {"warmup_steps": -1}}, r"schedule\.warmup_steps must be"),
        ({"schedule": {"min_lr": NAN}}, r"schedule\.min_lr must be"),
        ({"schedule": {"min_lr": 1.0}}, r"schedule\.min_lr must be at most the lr of every stage, 0\.01"),
        ({"model": {"rule": "local", "backbone": "big"}}, r"model\.backbone must be a mapping"),
        ({"model": {"rule": "local", "elements": "HO"}}, r"model\.elements must be a list"),
        ({"model": {"rule": "local", "dtype": {}}}, r"model\.dtype must be"),
        ({"model": {}, "start_from": "training/best.safetensors"}, "which this training writes"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        config_from_dict({**GOOD, **change})


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_config(tmp_path / "none.yaml")
    for text, message in (
        ("a: [", "not valid YAML"),
        ("- 1", "no options"),
        ("", "no options"),
        ("data: 1\nmodel: 2\ndata: 3", r"line 3, column 1: 'data' is set twice"),
        ("model: {rule: local, backbone: {r_max: 4, r_max: 5}}", "'r_max' is set twice"),
        ("stages:\n- epochs: 1\n  epochs: 100", "'epochs' is set twice"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &a [*a]", "Circular reference"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: !!set {b}", "more than numbers, strings, lists and mappings"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_config(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        load_config(tmp_path / "bad.yaml")


def test_what_is_said_twice_on_purpose():
    """Merged mappings may be overridden; dates are texts, as every name of a run is."""
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nname: 2026-01-02"
    assert read_yaml(text)["b"] == {"x": 3, "y": 2}
    assert read_yaml(text)["name"] == "2026-01-02"
