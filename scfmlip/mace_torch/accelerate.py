"""
Replace the slow blocks of a mace-torch model in memory by ours, and restore the original ones.

A swapped module is a subclass of the one it replaces and shares its parameters, buffers and children. So the
state dict and its meaning, optimisers and checkpoints stay valid. Parents of swapped modules are copied
shallowly, so the original model is not changed.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, TypeVar

import torch

from .protocol import is_density_model
from .step_graphs import StepGraphs, check_cuda
from .swapped import Swapped, SwappedModel, Swaps

Module = TypeVar("Module", bound=torch.nn.Module)
Compat = Literal["mace"]


def _rebuild(module: torch.nn.Module, swaps: Swaps, memo: dict[int, torch.nn.Module]) -> torch.nn.Module:
    """The module with the modules in ``swaps`` replaced; everything else is shared."""
    if id(module) in memo:
        return memo[id(module)]
    if isinstance(module, torch.jit.ScriptModule):
        memo[id(module)] = module
        return module
    children = {
        name: None if child is None else _rebuild(child, swaps, memo)
        for name, child in module._modules.items()
    }
    target, extra = swaps.get(id(module), (None, {}))
    if target is None and all(children[name] is child for name, child in module._modules.items()):
        memo[id(module)] = module
        return module
    copy = object.__new__(target or type(module))
    copy.__dict__ = {**module.__dict__, "_modules": children}
    if target is not None:
        # instance attributes would shadow the new class's methods
        hidden = getattr(target, "_scfmlip_hides", ())
        kept = {k: v for k, v in copy.__dict__.items() if not k.startswith("_scfmlip_") and k not in hidden}
        # wrapped in a tuple, so that a module that is only referenced is not registered as a child
        extra = {
            k: tuple(_rebuild(m, swaps, memo) for m in v) if _holds_modules(v) else v
            for k, v in extra.items()
        }
        copy.__dict__ = {**kept, **extra}
        reattach = getattr(type(module), "_scfmlip_reattach", None)
        if reattach is not None:
            reattach(copy)
    memo[id(module)] = copy
    return copy


def _holds_modules(value: object) -> bool:
    return type(value) is tuple and all(isinstance(m, torch.nn.Module) for m in value)


def _find_swaps(
    model: torch.nn.Module, electrostatics: bool, tensor_products: bool, compat: Compat | None
) -> tuple[Swaps, dict[int, str]]:
    """Modules to replace in this model, and modules that stay with the reason, both by ``id``."""
    from .whole import MACELES, WHOLE_MODELS, PolarMACE

    swaps: Swaps = {}
    left: dict[int, str] = {}
    if tensor_products:
        from .tensor_products import find_swaps

        swaps, left = find_swaps(model)
        if type(model) in WHOLE_MODELS and (swaps or is_accelerated(model)):
            swaps[id(model)] = (WHOLE_MODELS[type(model)], {})
    if electrostatics:
        found: tuple[Swaps, dict[int, str]] = {}, {}
        if PolarMACE is not None and isinstance(model, PolarMACE):
            from .polar import find_polar_swaps

            found = find_polar_swaps(model, compat)
        elif isinstance(model, MACELES):
            from .les import find_les_swaps

            found = find_les_swaps(model)
        swaps.update(found[0])
        left.update(found[1])
    return swaps, left


def _lines(model: torch.nn.Module, left: dict[int, str]) -> tuple[str, ...]:
    """Name, class and reason of every module that is not accelerated."""
    names = {id(module): name or "the model itself" for name, module in model.named_modules()}
    return tuple(
        f"{names[id(module)]} ({type(module).__name__}): {left[id(module)]}"
        for module in model.modules()
        if id(module) in left
    )


def _warn_left(model: torch.nn.Module, lines: tuple[str, ...]) -> None:
    if lines:
        warnings.warn(
            f"accelerate leaves {len(lines)} modules of this {type(model).__name__} unchanged: "
            + "; ".join(lines),
            stacklevel=3,
        )


def accelerate(
    model: Module,
    electrostatics: bool = True,
    tensor_products: bool = True,
    compat: Compat | None = None,
    cuda_graph: bool = False,
) -> Module:
    """
    Make a faster model with less memory from a mace-torch model: same call, outputs and state dict.

    All models: convolutions that store neither messages nor edge weights, symmetric contractions as one
    polynomial, skip connections by species. MACELES: also the latent Ewald sum, including its stress.
    PolarMACE: electrostatic features and energy run on `scfmlip.Coulomb` in O(atoms) memory, for both spin
    channels at once; the field-update and electron-energy blocks no longer build outer products of channels.

    Two results of PolarMACE differ from mace-torch 0.3.16's on purpose. The stress includes the strain of the
    wave vectors and agrees with finite differences, which the original's does not (issue 1642). And a
    system's results do not depend on the other systems in its batch. Everything else equals the original in
    float64, to 1e-9 or to what a change of the features by 1e-11 makes, with the constants that the model
    holds, rounded or not.

    One warning and the model's ``repr`` name all modules that are not accelerated. mace-torch's own tools
    (conversions, preparation for compiling, selecting a head) return accelerated models for accelerated ones.

    Args:
        model: A mace-torch ``MACE``, ``ScaleShiftMACE``, ``MACELES`` or ``PolarMACE`` in eager mode, with any
            dtype and device. It is not changed. The result shares its parameters and buffers, so training or
            moving one affects both.
        electrostatics: Whether to accelerate electrostatics and field blocks.
        tensor_products: Whether to accelerate the MACE backbone, in e3nn's or cuEquivariance's layout. Blocks
            that use OpenEquivariance's kernels are not replaced.
        compat: "mace": if a PolarMACE evaluates molecules and periodic systems in one batch, correct the
            molecules as molecules in boxes, as mace-torch does in such batches only.
        cuda_graph: Capture steps on a GPU as CUDA graphs: for dynamics, whose atoms, cell and weights stay.
            Results have no graph of autograd; calls with ``training=True`` and for Hessians or edge forces
            run as usual. Not for MACELES. With it, ``model`` may be one of `scfmlip.models` whose rule does
            not iterate.

    Returns:
        The accelerated model, an instance of the same mace-torch class. `restore` returns the original class,
        also after ``copy.deepcopy`` or ``torch.save`` and ``torch.load``. If the model is already
        accelerated, its remaining modules are; if nothing remains, the model itself is returned.

    Raises:
        TypeError: for something that is not a mace-torch model, or one that is scripted or compiled.
        ValueError: for an unknown ``compat``, or ``cuda_graph`` without CUDA or for a model whose steps
            cannot be captured.
        RuntimeError: for a mace-torch version whose PolarMACE differs from the supported one.

    Example:
        >>> import scfmlip
        >>> from scfmlip.models import build, to_mace
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> model = to_mace(build({"elements": ["H", "O"], "rule": "short_range", "backbone": backbone}))
        >>> fast = scfmlip.accelerate(model)  # of any eager mace-torch model; call it as before
        >>> scfmlip.is_accelerated(model), scfmlip.is_accelerated(fast)
        (False, True)
        >>> fast.state_dict().keys() == model.state_dict().keys()
        True
    """
    if compat not in (None, "mace"):
        raise ValueError(f"compat must be None or 'mace', got {compat!r}")
    try:
        from mace.modules.models import MACE
    except ImportError as error:
        raise TypeError(
            "accelerate needs mace-torch, which is not installed: pip install 'scfmlip[mace]'"
        ) from error
    if isinstance(model, (torch.jit.ScriptModule, torch._dynamo.OptimizedModule)):
        raise TypeError(
            f"accelerate takes the eager model, got a {type(model).__name__}: accelerate it first, then "
            "compile"
        )
    if cuda_graph and is_density_model(model):
        return model.with_cuda_graphs()  # type: ignore[operator]
    if not isinstance(model, MACE):
        raise TypeError(
            "accelerate takes a mace-torch model (MACE, ScaleShiftMACE, PolarMACE, MACELES), got "
            f"{type(model).__module__}.{type(model).__name__}"
        )
    if cuda_graph:
        check_cuda()
        fast = accelerate(model, electrostatics, tensor_products, compat)
        return _with_graphs(fast)
    if compat is not None and isinstance(model, SwappedModel):
        model = restore(model)
    swaps, left = _find_swaps(model, electrostatics, tensor_products, compat)
    lines = _lines(model, left)
    if swaps:
        _warn_left(model, lines)
        target, extra = swaps.get(id(model), (None, {}))
        if target is not None:
            swaps[id(model)] = (target, {**extra, "_scfmlip_left": lines})
        return _rebuild(model, swaps, {})  # type: ignore[return-value]
    if not is_accelerated(model):
        reasons = "".join(f"; {line}" for line in lines)
        warnings.warn(
            f"nothing to accelerate in this {type(model).__name__} "
            f"(electrostatics={electrostatics}, tensor_products={tensor_products}): returned unchanged"
            + reasons,
            stacklevel=2,
        )
    return model


def _with_graphs(model: Any) -> Any:
    """The same accelerated model, whose steps are captured."""
    if not isinstance(model, SwappedModel) or hasattr(model, "les"):
        raise ValueError(
            f"cuda_graph=True: a step of this {type(model).__name__} cannot be captured, its sums are "
            "planned on the host in every step: leave cuda_graph out"
        )
    graphed = object.__new__(type(model))
    graphed.__dict__ = {**model.__dict__, "_scfmlip_graphs": StepGraphs()}
    return graphed


def accelerate_blocks(module: Module) -> Module:
    """
    Accelerate mace-torch's interaction and product blocks inside any module; see `accelerate`.

    Args:
        module: The module. It is not changed; the result shares its parameters.
    """
    from .tensor_products import find_swaps

    swaps, left = find_swaps(module)
    _warn_left(module, _lines(module, left))
    return _rebuild(module, swaps, {})  # type: ignore[return-value]


def is_accelerated(model: torch.nn.Module) -> bool:
    """
    Whether any module of a model runs on our operators; the model's ``repr`` names those that do not.

    Args:
        model: Any module: from `accelerate`, compiled, of `scfmlip.models`, or wrapped by other code.

    Example:
        >>> import torch, scfmlip
        >>> scfmlip.is_accelerated(torch.nn.Linear(4, 4))  # True for what `accelerate` returns
        False
    """
    return any(isinstance(m, Swapped) for m in model.modules())


def restore(model: Module) -> Module:
    """
    The mace-torch model behind an accelerated one, sharing its parameters.

    Args:
        model: From `accelerate`, possibly copied or loaded since; other modules are returned unchanged.

    Returns:
        A model of mace-torch's own classes.

    Example:
        >>> import scfmlip
        >>> from scfmlip.models import build, to_mace
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> model = to_mace(build({"elements": ["H", "O"], "rule": "short_range", "backbone": backbone}))
        >>> back = scfmlip.restore(scfmlip.accelerate(model))
        >>> scfmlip.is_accelerated(back), type(back) is type(model)
        (False, True)
    """
    back: Swaps = {
        id(m): (vars(type(m))["_scfmlip_original"], {})
        for m in model.modules()
        if "_scfmlip_original" in vars(type(m))
    }
    return _rebuild(model, back, {})  # type: ignore[return-value]


# models that mace-torch builds from an accelerated model are accelerated too
SwappedModel._scfmlip_accelerate = staticmethod(accelerate)
