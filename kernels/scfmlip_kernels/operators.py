"""
How an operator becomes part of PyTorch: autograd, `torch.func`, vmap, autocast and compilers.

`torch.library.custom_op` cannot be used inside `torch.func`: `grad` raises, and forward mode drops tangents
without a word, so that `jacfwd` and `hessian` are 0. Here the operator's autograd kernel is a node of one
level of `torch.func` at a time, as PyTorch's own operators have them, and forward mode has rules of its own.
Whatever calls the operator can be transformed: the public function, an exported graph, another backward.

Under `torch.autocast` operators are on what PyTorch calls the float32 list: inputs of lower precision are
raised to float32, and so is the result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # type: ignore[attr-defined]
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

_library = torch.library.Library("scfmlip", "FRAGMENT")
_DEVICES = ("cpu", "cuda")
# every operator of the library, by its name with the namespace
OPERATORS: dict[str, "Operator"] = {}


def sum_of_replaced(call: Callable[..., Tensor], args: Sequence[Any], tangents: Sequence[Any]) -> Tensor:
    """Derivative of an operator linear in each argument: a sum with each tangent in its argument's place."""
    total = None
    for n, tangent in enumerate(tangents):
        if tangent is not None:
            term = call(*args[:n], tangent, *args[n + 1 :])
            total = term if total is None else total + term
    assert total is not None
    return total


class Operator:
    """
    One operator of the namespace ``scfmlip``; made by `operator`.

    Args:
        name: With the namespace.
        kernel: Computes it, for tensors without autograd; its annotations are the schema. No result shares
            memory with an argument.
    """

    def __init__(self, name: str, kernel: Callable[..., Any]) -> None:
        self.name, self.kernel, short = name, kernel, name.removeprefix("scfmlip::")
        OPERATORS[name] = self
        schema = torch.library.infer_schema(kernel, mutates_args=())
        _library.define(short + schema, tags=(torch.Tag.pt2_compliant_tag,))
        self.overload: Any = getattr(torch.ops.scfmlip, short).default
        torch.library.register_kernel(name, None, kernel, lib=_library)  # type: ignore[arg-type]
        for device in _DEVICES:
            torch.library.register_autocast(name, device, torch.float32, lib=_library)
        self._setup_context: Callable[..., None] | None = None
        self._backward: Callable[..., Any] | None = None
        self._jvp: Callable[..., Any] | None = None
        self._register_autograd_kernel(short)

    def register_fake(self, function: Callable[..., Any]) -> None:
        """What compilers need: results without numbers, of the right shapes, dtypes and strides."""
        torch.library.register_fake(self.name, function, lib=_library)

    def register_vmap(self, function: Callable[..., Any]) -> None:
        """Rule of `torch.vmap`, as `torch.library.register_vmap` takes it."""
        torch.library.register_vmap(self.name, function, lib=_library)

    def register_autograd(
        self,
        backward: Callable[..., Any],
        *,
        setup_context: Callable[..., None],
        jvp: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None,
    ) -> None:
        """
        Derivatives; without them, one that is asked for raises.

        Args:
            backward: As in `torch.library.register_autograd`.
            setup_context: The same.
            jvp: Forward mode, ``jvp(args, tangents)`` with None for arguments without a tangent: the
                results' tangents. If None the operator has one result, linear in each of its arguments.
        """
        self._backward, self._setup_context, self._jvp = backward, setup_context, jvp

    def _below(self, keyset, args):
        """The operator without this level of autograd; it mutates nothing, so that views need no record."""
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return self.overload.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)

    def _forward(self, ctx, *args):
        *args, (keyset, duals) = args
        if self._backward is None or self._setup_context is None:
            raise NotImplementedError(f"{self.name} has no derivatives: call it under torch.no_grad()")
        if _functorch_is_active():
            # a node's forward switches derivatives off: not those of the levels further out
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                result = self._below(keyset, args)
        else:
            result = self._below(keyset, args)
        self._setup_context(ctx, args, result)
        if duals is not None:  # `_node_jvp` runs next
            ctx.duals, ctx.result = duals, result
        return result

    def _node_backward(self, ctx, *grads):
        # the last argument of the node is no argument of the operator
        needed = ctx.needs_input_grad
        ctx.needs_input_grad = needed[:-1]
        try:
            found = self._backward(ctx, *grads)  # type: ignore[misc]
        finally:
            ctx.needs_input_grad = needed
        return *(found if isinstance(found, tuple) else (found,)), None

    def _node_jvp(self, ctx, *_):
        primals, tangents = zip(*ctx.duals, strict=True)
        results = ctx.result if isinstance(ctx.result, tuple) else (ctx.result,)
        del ctx.duals, ctx.result
        with forward_ad._set_fwd_grad_enabled(True):  # for the levels further out
            if self._jvp is None:
                return sum_of_replaced(self.overload, primals, tangents)
            found = self._jvp(primals, tangents)
        if isinstance(found, Tensor):
            return found
        return tuple(torch.zeros_like(r) if t is None else t for r, t in zip(results, found, strict=True))

    def _register_autograd_kernel(self, short: str) -> None:
        functions = {"forward": self._forward, "backward": self._node_backward, "jvp": self._node_jvp}
        functions["_compiled_autograd_key"] = torch.autograd.Function._compiled_autograd_key
        members = {name: staticmethod(function) for name, function in functions.items()}
        # not an autograd.Function: under torch.func those turn to the dispatcher, where we are already
        node: Any = type(f"scfmlip_{short}", (_SingleLevelFunction,), members)

        def autograd_kernel(keyset, *args):
            duals = _unpacked(args) if forward_ad._current_level >= 0 else None
            if duals is None and not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
                return self._below(keyset, args)
            if not _functorch_is_active():
                return node.apply(*args, (keyset, duals))
            allowed = _functorch.get_single_level_autograd_function_allowed()
            _functorch.set_single_level_autograd_function_allowed(True)
            try:
                return node.apply(*args, (keyset, duals))
            finally:
                _functorch.set_single_level_autograd_function_allowed(allowed)

        _library.impl(short, autograd_kernel, "Autograd", with_keyset=True)


def _unpacked(args: Sequence[Any]) -> Sequence[tuple[Any, Any]] | None:
    """Each argument and its tangent, which may be None; None if all are."""
    found = [forward_ad.unpack_dual(a) if isinstance(a, Tensor) else (a, None) for a in args]
    return found if any(tangent is not None for _, tangent in found) else None


_functorch_is_active = torch._C._are_functorch_transforms_active


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that makes a kernel the operator ``name``: it is called by that name in `torch.ops`."""
    return lambda kernel: Operator(name, kernel)
