"""Old names of modules: the same modules, in imports and in pickles."""

import importlib
import importlib.util
import pickle

import pytest

from scfmlip import moved

HERE = [(old, new) for old, new in moved._MOVED.items() if not new.startswith(("models", "mace_torch", "nn"))]


@pytest.mark.parametrize(("old", "new"), moved._MOVED.items())
def test_no_module_has_an_old_name(old, new):
    assert importlib.util.find_spec(f"scfmlip.{new}") is not None
    found = importlib.util.find_spec(f"scfmlip.{old}")
    assert found is None or isinstance(found.loader, moved.MovedModules)


@pytest.mark.parametrize(("old", "new"), HERE)
def test_the_same_module(old, new):
    module = importlib.import_module(f"scfmlip.{new}")
    assert importlib.import_module(f"scfmlip.{old}") is module
    assert module.__name__ == module.__spec__.name == f"scfmlip.{new}"


def test_classes_in_pickles():
    """Accelerated models that 0.1.0 pickled."""
    pytest.importorskip("mace", reason="needs mace-torch")
    new = importlib.import_module("scfmlip.mace_torch.tensor_products").FastConvolution
    assert pickle.loads(b"cscfmlip.interfaces.mace.tensor_products\nFastConvolution\n.") is new


def test_what_never_was():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("scfmlip.interfaces.nothing")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("scfmlip.interfaces.mace.nothing")
