"""What every swapped module shares: to mace-torch's own tools it is the module it stands for."""

from __future__ import annotations

from typing import Any, NoReturn


class Swapped:
    """
    First base of a class that takes the place of another, named in ``_scfmlip_original``.

    mace-torch's conversions, fine-tuning and evaluation ask a class for its name, and call it to build the
    next model: both are the original's. ``__qualname__``, by which pickle finds a class, stays its own.
    """

    _scfmlip_original: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__name__ = cls._scfmlip_original.__name__

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # without arguments it is pickle or deepcopy
        return cls._scfmlip_original(*args, **kwargs) if args or kwargs else super().__new__(cls)

    def _get_name(self) -> str:
        """How it prints."""
        return type(self).__qualname__

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError(
            "TorchScript (torch.jit.script, mace_create_lammps_model) cannot hold an accelerated model: "
            "script scfmlip.restore(model) instead"
        )
