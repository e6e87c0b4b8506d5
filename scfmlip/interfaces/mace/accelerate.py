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


def _rebuild(
    module: torch.nn.Module, classes: dict[type, type], memo: dict[int, torch.nn.Module]
) -> torch.nn.Module:
    """The module with every class in ``classes`` replaced, sharing whatever does not change."""
    if id(module) in memo:
        return memo[id(module)]
    if isinstance(module, torch.jit.ScriptModule):
        memo[id(module)] = module
        return module
    children = {
        name: None if child is None else _rebuild(child, classes, memo)
        for name, child in module._modules.items()
    }
    target = classes.get(type(module))
    if target is None and all(children[name] is child for name, child in module._modules.items()):
        memo[id(module)] = module
        return module
    copy = object.__new__(target or type(module))
    copy.__dict__ = {**module.__dict__, "_modules": children}
    memo[id(module)] = copy
    return copy


def _swaps(model: torch.nn.Module, electrostatics: bool) -> dict[type, type]:
    """Which classes to replace by which, for what this model holds."""
    if not electrostatics:
        return {}
    from mace.modules.extensions import MACELES, PolarMACE

    swaps: dict[type, type] = {}
    if isinstance(model, PolarMACE):
        from .polar import FastPolarMACE, check_polar_version
        from .polar_blocks import block_swaps

        check_polar_version()
        swaps[PolarMACE] = FastPolarMACE
        swaps.update(block_swaps())
    elif isinstance(model, MACELES):
        from .les import les_swaps

        swaps.update(les_swaps())
    return swaps


def accelerate(model: Module, electrostatics: bool = True, tensor_products: bool = True) -> Module:
    """
    A mace-torch model with the same call, outputs and state dict, faster and in less memory.

    PolarMACE: electrostatic features and energy run on `scfmlip.Coulomb` in O(atoms) memory, both spin
    channels at once, and the field-update and electron-energy blocks no longer build outer products of
    channels. Its stress includes the strain of the wave vectors and is right to finite differences, which
    mace-torch 0.3.16's is not (issue 1642 there); everything else equals the original. MACELES: the
    latent Ewald sum, its stress included.

    Args:
        model: A mace-torch ``PolarMACE`` or ``MACELES`` in eager mode, any dtype and device. It is not
            changed; the result shares its parameters and buffers, so training or moving one moves both.
        electrostatics: Accelerate electrostatics and field blocks.
        tensor_products: Accelerate the MACE backbone. Has no effect yet: no block of it is replaced.

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
    swaps = _swaps(model, electrostatics)
    fast = _rebuild(model, swaps, {})
    if fast is model:
        warnings.warn(
            f"nothing to accelerate in this {type(model).__name__} "
            f"(electrostatics={electrostatics}, tensor_products={tensor_products}): returned unchanged",
            stacklevel=2,
        )
    return fast  # type: ignore[return-value]


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
    classes = {type(m) for m in model.modules()}
    back = {c: vars(c)["_scfmlip_original"] for c in classes if "_scfmlip_original" in vars(c)}
    return _rebuild(model, back, {})  # type: ignore[return-value]
