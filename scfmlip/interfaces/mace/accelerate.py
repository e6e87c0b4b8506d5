"""
Swap the slow blocks of a live mace-torch model for ours, and back.

A swapped module is a subclass of the one it replaces and shares its parameters, buffers and children, so
the state dict, its meaning, optimisers and checkpoints stay as they are. Modules on the way down to a
swapped one are copied shallowly: the model passed in is left untouched.
"""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch

Module = TypeVar("Module", bound=torch.nn.Module)


# by id of a module: its new class and the attributes it gets
Swaps = dict[int, tuple[type, dict]]


def _rebuild(module: torch.nn.Module, swaps: Swaps, memo: dict[int, torch.nn.Module]) -> torch.nn.Module:
    """The module with what ``swaps`` names replaced, sharing whatever does not change."""
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
        # methods that were attached to the instance would go before the new class's
        hidden = getattr(target, "_scfmlip_hides", ())
        kept = {k: v for k, v in copy.__dict__.items() if not k.startswith("_scfmlip_") and k not in hidden}
        # in a tuple, so that a module that is only referred to is not registered as a child
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


def _find_swaps(model: torch.nn.Module, electrostatics: bool, tensor_products: bool) -> Swaps:
    """What to replace in this model."""
    from mace.modules.extensions import MACELES, PolarMACE

    classes: dict[type, type] = {}
    if electrostatics and isinstance(model, PolarMACE):
        from .polar import FastPolarMACE, check_polar_version
        from .polar_blocks import block_swaps

        check_polar_version()
        classes = {PolarMACE: FastPolarMACE, **block_swaps()}
    elif electrostatics and isinstance(model, MACELES):
        from .les import les_swaps

        classes = les_swaps()
    swaps: Swaps = {id(m): (classes[type(m)], {}) for m in model.modules() if type(m) in classes}
    if tensor_products:
        from .tensor_products import find_swaps

        swaps.update(find_swaps(model))
    return swaps


def accelerate(model: Module, electrostatics: bool = True, tensor_products: bool = True) -> Module:
    """
    A mace-torch model with the same call, outputs and state dict, faster and in less memory.

    PolarMACE: electrostatic features and energy run on `scfmlip.Coulomb` in O(atoms) memory, both spin
    channels at once, and the field-update and electron-energy blocks no longer build outer products of
    channels. Its stress includes the strain of the wave vectors and is right to finite differences, which
    mace-torch 0.3.16's is not (issue 1642 there); everything else equals the original. MACELES: the
    latent Ewald sum, its stress included. Every model: convolutions that store neither messages nor weights
    of edges, symmetric contractions as one polynomial, skip connections by species.

    Args:
        model: A mace-torch ``MACE``, ``ScaleShiftMACE``, ``MACELES`` or ``PolarMACE`` in eager mode, any
            dtype and device. It is not changed; the result shares its parameters and buffers, so training or
            moving one moves both.
        electrostatics: Accelerate electrostatics and field blocks.
        tensor_products: Accelerate the MACE backbone, in e3nn's or cuEquivariance's layout. Blocks on
            OpenEquivariance's kernels stay as they are.

    Returns:
        The accelerated model, an instance of the same mace-torch class; `restore` gives the original
        class back, also after ``copy.deepcopy`` or ``torch.save`` and ``torch.load``.

    Raises:
        TypeError: for something that is not a mace-torch model, or one that is scripted or compiled.
        RuntimeError: for a mace-torch version whose PolarMACE differs from the one known here.
    """
    try:
        from mace.modules.models import MACE
    except ImportError as error:
        raise TypeError(
            "accelerate needs mace-torch, which is not installed: pip install 'scfmlip[mace]'"
        ) from error
    if isinstance(model, (torch.jit.ScriptModule, torch._dynamo.OptimizedModule)):
        raise TypeError(
            f"accelerate takes the eager model, got a {type(model).__name__}: accelerate first, compile "
            "afterwards"
        )
    if not isinstance(model, MACE):
        raise TypeError(
            "accelerate takes a mace-torch model (MACE, ScaleShiftMACE, PolarMACE, MACELES), got "
            f"{type(model).__module__}.{type(model).__name__}"
        )
    if _is_accelerated(model):
        return model
    fast = _rebuild(model, _find_swaps(model, electrostatics, tensor_products), {})
    if fast is model:
        warnings.warn(
            f"nothing to accelerate in this {type(model).__name__} "
            f"(electrostatics={electrostatics}, tensor_products={tensor_products}): returned unchanged",
            stacklevel=2,
        )
    return fast  # type: ignore[return-value]


def accelerate_blocks(module: Module) -> Module:
    """
    Any module with mace-torch's interaction and product blocks inside, these swapped; see `accelerate`.

    Args:
        module: Not changed; the result shares its parameters.
    """
    from .tensor_products import find_swaps

    return _rebuild(module, find_swaps(module), {})  # type: ignore[return-value]


def _is_accelerated(model: torch.nn.Module) -> bool:
    return any(hasattr(type(m), "_scfmlip_original") for m in model.modules())


def restore(model: Module) -> Module:
    """
    The mace-torch model behind an accelerated one, sharing its parameters.

    Args:
        model: From `accelerate`, possibly copied or loaded since; any other module comes back as it is.

    Returns:
        A model of mace-torch's own classes.
    """
    back: Swaps = {
        id(m): (vars(type(m))["_scfmlip_original"], {})
        for m in model.modules()
        if "_scfmlip_original" in vars(type(m))
    }
    return _rebuild(model, back, {})  # type: ignore[return-value]
