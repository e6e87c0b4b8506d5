"""What every swapped module shares: to mace-torch's own tools it is the module it stands for."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, NoReturn

import torch

# by id of a module: its new class and the attributes it gets
Swaps = dict[int, tuple[type, dict]]


class Swapped:
    """
    First base of a class that takes the place of another, named in ``_scfmlip_original``.

    mace-torch's conversions, fine-tuning and evaluation ask a class for its name, and call it to build the
    next model: both are the original's. ``__qualname__``, by which pickle finds a class, stays its own.
    """

    _scfmlip_original: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "_scfmlip_original"):
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


class SwappedModel(Swapped):
    """
    First base of a whole model's class; called to build the next model, it builds an accelerated one.

    So what mace-torch makes of an accelerated model, for ``torch.compile``, in cuEquivariance's layout or
    with one head, is accelerated too. ``_scfmlip_options`` are those of `accelerate`.
    """

    _scfmlip_options: ClassVar[dict[str, Any]] = {}
    # `accelerate`, which stands above this module and puts itself here
    _scfmlip_accelerate: ClassVar[Any]
    # name and class of modules that stayed as they were, and why
    _scfmlip_left: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs:
            return super().__new__(cls)
        return cls._scfmlip_accelerate(cls._scfmlip_original(*args, **kwargs), **cls._scfmlip_options)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `__new__` has made all of it."""

    def extra_repr(self) -> str:
        """How much of it is accelerated."""
        modules: Any = self.modules()  # type: ignore[attr-defined]
        count = sum(isinstance(m, Swapped) for m in modules)
        lines = [f"accelerated by scfmlip: {count} modules"]
        return "\n".join(lines + [f"as mace-torch made it: {left}" for left in self._scfmlip_left])


def not_compiled(name: str) -> Any:
    """
    Decorator of a forward pass that ``torch.compile`` leaves to eager mode, where it stays accelerated.

    With ``fullgraph=True``, which mace-torch's calculator asks for, that is an error with this reason.
    """
    return torch.compiler.disable(
        reason=f"an accelerated {name} runs in eager mode only, its sums depend on cells and charges: leave "
        "out compile_mode of MACECalculator, or compile with fullgraph=False, which leaves it as it is"
    )


def warn_fallback(module: Any, reason: str) -> None:
    """Say once that a swapped module runs mace-torch's own code, and why."""
    if torch.compiler.is_compiling() or getattr(module, "_scfmlip_told", None) == reason:
        return
    module._scfmlip_told = reason
    warnings.warn(
        f"accelerated {type(module).__name__} runs mace-torch's own code: {reason}. The result is the same, "
        "slower and in more memory",
        stacklevel=3,
    )
