"""Files of models: what they say must fit what they hold, before anything of that size is built."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("mace", reason="needs mace-torch")

from safetensors import safe_open

import scfmlip
from models.cases import ALL, make_model
from scfmlip.data import path
from scfmlip.models import checkpoint

NETWORK = "backbone.mace."


@pytest.fixture
def edited(tmp_path):
    """A model's file with another configuration or other weights."""

    def edit(case="local", config=None, weights=None):
        file = tmp_path / "m.safetensors"
        scfmlip.save(make_model(case), file)
        with safe_open(file, "pt") as content:
            header = content.metadata()
        given, tensors = json.loads(header["config"]), load_file(file)
        for place, change in (config or {}).items():
            *outer, last = place.split(".")
            target = given
            for name in outer:
                target = target[name]
            target[last] = change
        for name, change in (weights or {}).items():
            tensors[name] = change(tensors[name])
        save_file(tensors, file, metadata=header | {"config": json.dumps(given)})
        return file

    return edit


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("products.0.linear.weight", lambda t: torch.full_like(t, torch.nan), "NaN or infinite.*products.0"),
        ("products.0.linear.weight", lambda t: torch.full_like(t, torch.inf), "NaN or infinite"),
        ("products.0.linear.weight", lambda t: (10 * t).long(), r"int64 \[\d+\] instead of float64 \[\d+\]"),
        ("atomic_numbers", lambda t: t.double(), r"float64 \[3\] instead of int64 \[3\]"),
        ("products.0.linear.weight", lambda t: t[:-1], "do not match its configuration"),
        ("products.0.linear.weight", lambda t: t.half(), "float16"),
        ("atomic_numbers", lambda t: t[[0, 2, 1]], "its elements is"),
        ("r_max", lambda t: t + 0.1, r"its backbone\.r_max is 4\.0, its weights say 4\.1"),
    ],
)
def test_weights_that_cannot_be(name, change, message, edited):
    with pytest.raises(ValueError, match=message):
        scfmlip.load(edited(weights={NETWORK + name: change}))


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("local", {"elements": [1, 6, 13]}),
        ("local", {"elements": list(range(1, 100)), "atomic_energies": [0.0] * 99}),
        ("local", {"backbone.r_max": 5.0}),
        ("local", {"backbone.num_interactions": 3}),
        ("local", {"backbone.num_interactions": 10**9}),
        ("local", {"backbone.hidden_irreps": "10000x0e+10000x1o"}),
        ("local", {"backbone.hidden_irreps": "10000000x0e"}),
        ("local", {"backbone.radial_MLP": [16000, 16000]}),
        ("local", {"backbone.radial_MLP": [10**12]}),
        ("local", {"backbone.num_bessel": 10**9}),
        ("local", {"backbone.max_ell": 11, "backbone.correlation": 40}),
        ("local", {"backbone.options": {"max_value": 10**12}}),
        ("local", {"rule.hidden": 10**12}),
        ("affine", {"rule.channels": 10**12}),
        ("qeq_feedback", {"rule.feedback.hidden_irreps": "16000x0e"}),
        ("qeq_feedback", {"rule.feedback.n_categories": 10**12}),
        ("local", {"rule": "magic"}),
        ("local", {"backbone": 3}),
        ("local", {"density.sigma": None}),
    ],
)
def test_a_configuration_of_other_weights_is_not_built(case, config, edited, monkeypatch):
    file = edited(case, config)
    monkeypatch.setattr(checkpoint, "build", lambda *_: pytest.fail("this would be built"))
    started = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"is not a complete model|the configuration in .* (is invalid|cannot be built)"
    ):
        scfmlip.load(file)
    assert time.perf_counter() - started < 5


def test_what_is_built_is_not_larger_than_the_file(edited):
    """Options that the weights do not show at once are found when names and shapes are compared."""
    for config in ({"backbone.num_bessel": 5}, {"backbone.hidden_irreps": "2x0e+2x1o"}, {"rule.hidden": 17}):
        with pytest.raises(ValueError, match=r"do not match its configuration|is not a complete model"):
            scfmlip.load(edited(config=config))


@pytest.mark.parametrize("case", ALL)
def test_the_least_of_weights_is_not_more_than_there_are(case):
    config = make_model(case).config
    held = sum(t.numel() for t in make_model(case).state_dict().values())
    assert 0 < checkpoint._fewest_weights(config.backbone, len(config.elements)) <= held


def test_the_dtype_is_that_of_the_weights(tmp_path):
    """A model that was moved is read back as it was, not rounded."""
    model = make_model("local", "float32").double()
    scfmlip.save(model, tmp_path / "m.safetensors")
    loaded = scfmlip.load(tmp_path / "m.safetensors")
    assert loaded.config.dtype == "float64"
    assert next(loaded.parameters()).dtype == torch.float64
    with pytest.raises(ValueError, match="float32 or float64"):
        scfmlip.save(make_model("local", "float32").half(), tmp_path / "m.safetensors")


def test_nan_is_not_saved(tmp_path):
    model = make_model("local", "float32")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="this model has NaN or infinite weights"):
        scfmlip.save(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_headers_that_cannot_be(tmp_path, edited):
    file = edited()
    tensors = load_file(file)
    for header, message in (
        ({}, "was not written by scfmlip.save"),
        ({"format": "scfmlip-model-1"}, "is invalid"),
        ({"format": "scfmlip-model-1", "config": "{"}, "is invalid"),
        ({"format": "scfmlip-model-1", "config": "[" * 100_000}, "is invalid"),
    ):
        save_file(tensors, file, metadata=header)
        with pytest.raises(ValueError, match=message):
            scfmlip.load(file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a safetensors file, or damaged"):
        scfmlip.load(file)


def test_shipped_models_load():
    for name in ("al_water-equilibrated", "al_water-fixed_point"):
        assert scfmlip.load(path(f"models/{name}.safetensors")).config.elements == (1, 8, 13)
