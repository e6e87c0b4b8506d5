"""Base classes of swapped modules, which look to mace-torch's tools like the modules they replace."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, NoReturn

import torch

# by id of a module: its new class and new attributes
Swaps = dict[int, tuple[type, dict]]


class Swapped:
    """
    First base of a class that replaces another one, named in ``_scfmlip_original``.

    mace-torch's conversions, fine-tuning and evaluation read a class's name and call it to build the next
    model; both give the original. ``__qualname__``, by which pickle finds a class, stays the new class's.
    """

    _scfmlip_original: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "_scfmlip_original"):
            cls.__name__ = cls._scfmlip_original.__name__

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # pickle and deepcopy call without arguments
        return cls._scfmlip_original(*args, **kwargs) if args or kwargs else super().__new__(cls)

    def _get_name(self) -> str:
        """The name in ``repr``."""
        return type(self).__qualname__

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError(
            "TorchScript (torch.jit.script, mace_create_lammps_model) does not support accelerated models: "
            "script scfmlip.restore(model) instead"
        )


class SwappedModel(Swapped):
    """
    First base of a model's class; calling it to build another model builds an accelerated one.

    So models that mace-torch derives from an accelerated model, for ``torch.compile``, in cuEquivariance's
    layout or with one head, are accelerated too. ``_scfmlip_options`` are the options of `accelerate`.
    """

    _scfmlip_options: ClassVar[dict[str, Any]] = {}
    # `accelerate`, which imports this module and sets itself here
    _scfmlip_accelerate: ClassVar[Any]
    # name and class of modules that were not replaced, and the reason
    _scfmlip_left: tuple[str, ...] = ()
    # captured steps, see `accelerate`
    _scfmlip_graphs: Any = None

    def __call__(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The forward pass, as a CUDA graph if the model was accelerated with ``cuda_graph=True``."""
        run: Any = super().__call__  # type: ignore[misc]
        if self._scfmlip_graphs is None or args or torch.compiler.is_compiling():
            return run(data, *args, **kwargs)
        return self._scfmlip_graphs.step(self, run, data, kwargs)

    def capture_token(self, data: dict[str, Any]) -> tuple | None:
        """What a captured step depends on besides shapes and weights; None where it cannot be captured."""
        return ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs:
            return super().__new__(cls)
        return cls._scfmlip_accelerate(cls._scfmlip_original(*args, **kwargs), **cls._scfmlip_options)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: `__new__` has built the model."""

    def extra_repr(self) -> str:
        """Report how many modules are accelerated."""
        modules: Any = self.modules()  # type: ignore[attr-defined]
        count = sum(isinstance(m, Swapped) for m in modules)
        lines = [f"accelerated by scfmlip: {count} modules"]
        return "\n".join(lines + [f"as mace-torch made it: {left}" for left in self._scfmlip_left])


def not_compiled(name: str) -> Any:
    """
    Decorator for a forward pass that ``torch.compile`` runs in eager mode, where it stays accelerated.

    With ``fullgraph=True``, which mace-torch's calculator sets, this is an error with the given reason.
    """
    return torch.compiler.disable(
        reason=f"an accelerated {name} runs in eager mode only, its sums depend on cells and charges: leave "
        "out compile_mode of MACECalculator, or compile with fullgraph=False, which skips it"
    )


def warn_fallback(module: Any, reason: str) -> None:
    """Warn once that a swapped module runs mace-torch's own code, with the reason."""
    if torch.compiler.is_compiling() or getattr(module, "_scfmlip_told", None) == reason:
        return
    module._scfmlip_told = reason
    warnings.warn(
        f"accelerated {type(module).__name__} runs mace-torch's own code: {reason}. The result is the same, "
        "slower and in more memory",
        stacklevel=3,
    )
