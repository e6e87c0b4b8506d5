"""
Registration of operators with PyTorch: autograd, `torch.func`, vmap, autocast and compilers.

`torch.library.custom_op` cannot be used inside `torch.func`: `grad` raises, and forward mode silently drops
tangents, so that `jacfwd` and `hessian` return 0. Here the operator's autograd kernel creates a node for one
level of `torch.func` at a time, as PyTorch's own operators do, and forward mode has its own rules. Any caller
of the operator can be transformed: the public function, an exported graph, another backward pass.

Under `torch.autocast`, operators behave as those on PyTorch's float32 list: inputs of lower precision are
converted to float32, and the result is float32.
"""

import contextlib
import functools
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
    """Derivative of a multilinear operator: the sum over arguments, each replaced by its tangent in turn."""
    total = None
    for n, tangent in enumerate(tangents):
        if tangent is not None:
            term = call(*args[:n], tangent, *args[n + 1 :])
            total = term if total is None else total + term
    assert total is not None
    return total


def on_device_of_arguments(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, launched on the GPU that its tensors are on: Triton launches on the current one."""

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        device = next((a.device for a in args if isinstance(a, Tensor) and a.is_cuda), None)
        if device is None or device.index == torch.cuda.current_device():
            return kernel(*args)
        with torch.cuda.device(device):
            return kernel(*args)

    return run


def transformed() -> bool:
    """Whether `torch.func` or forward mode is at work, which backward passes must let through."""
    return _functorch_is_active() or forward_ad._current_level >= 0


def differentiated_again(
    function: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor],
    wanted: Sequence[bool],
    along: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """
    Derivatives of what a backward pass gave, by PyTorch, differentiable if derivatives are recorded now.

    Args:
        function: What it gave, of these tensors, in PyTorch.
        tensors: The tensors.
        wanted: In which derivatives are wanted.
        along: Gradients of the results, None where there are none.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views are told apart where one tensor is given twice, or depends on another
        leaves = [
            t.view_as(t) if again else t.detach().requires_grad_(w)
            for t, w in zip(tensors, wanted, strict=True)
        ]
        pairs = [(r, v) for r, v in zip(function(*leaves), along, strict=True) if v is not None]
        asked = [leaf for leaf, w in zip(leaves, wanted, strict=True) if w]
        results, given = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(results, asked, given, create_graph=again, allow_unused=True))
    return [next(found) if w else None for w in wanted]


class Operator:
    """
    One operator of the namespace ``scfmlip``; made by `operator`.

    Args:
        name: Name, including the namespace.
        kernel: The implementation, without autograd; its annotations define the schema. No result may share
            memory with an argument.
    """

    def __init__(self, name: str, kernel: Callable[..., Any]) -> None:
        self.name, short = name, name.removeprefix("scfmlip::")
        self.kernel = on_device_of_arguments(kernel)
        OPERATORS[name] = self
        schema = torch.library.infer_schema(kernel, mutates_args=())
        _library.define(short + schema, tags=(torch.Tag.pt2_compliant_tag,))
        self.overload: Any = getattr(torch.ops.scfmlip, short).default
        torch.library.register_kernel(name, None, self.kernel, lib=_library)  # type: ignore[arg-type]
        for device in _DEVICES:
            torch.library.register_autocast(name, device, torch.float32, lib=_library)
        self._setup_context: Callable[..., None] | None = None
        self._backward: Callable[..., Any] | None = None
        self._jvp: Callable[..., Any] | None = None
        self._register_autograd_kernel(short)

    def register_fake(self, function: Callable[..., Any]) -> None:
        """Register the fake kernel for compilers: the results' shapes, dtypes and strides, without data."""
        torch.library.register_fake(self.name, function, lib=_library)

    def register_vmap(self, function: Callable[..., Any]) -> None:
        """Register a rule for `torch.vmap`, in the form of `torch.library.register_vmap`."""
        torch.library.register_vmap(self.name, function, lib=_library)

    def register_autograd(
        self,
        backward: Callable[..., Any],
        *,
        setup_context: Callable[..., None],
        jvp: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None,
    ) -> None:
        """
        Register derivatives; without them, requesting one raises.

        Args:
            backward: As in `torch.library.register_autograd`.
            setup_context: Likewise.
            jvp: Forward mode: ``jvp(args, tangents)``, with None for arguments without a tangent, returns the
                results' tangents. If None, the operator must have one result, linear in each argument.
        """
        self._backward, self._setup_context, self._jvp = backward, setup_context, jvp

    def _below(self, keyset, args):
        """The operator below this level of autograd; it mutates nothing, so views need no tracking."""
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return self.overload.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)

    def _forward(self, ctx, *args):
        *args, (keyset, duals) = args
        if self._backward is None or self._setup_context is None:
            raise NotImplementedError(f"{self.name} has no derivatives: call it under torch.no_grad()")
        if _functorch_is_active():
            # a node's forward disables derivatives, but must not disable those of outer levels
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                result = self._below(keyset, args)
        else:
            result = self._below(keyset, args)
        self._setup_context(ctx, args, result)
        ctx.tensors = [isinstance(a, Tensor) for a in args]
        if duals is not None:  # `_node_jvp` runs next
            ctx.duals, ctx.result = duals, result
        return result

    def _node_backward(self, ctx, *grads):
        # the last argument of the node is not an argument of the operator
        needed = ctx.needs_input_grad
        ctx.needs_input_grad = _wanted(ctx, needed[:-1])
        try:
            found = self._backward(ctx, *grads)  # type: ignore[misc]
        finally:
            ctx.needs_input_grad = needed
        return *(found if isinstance(found, tuple) else (found,)), None

    def _node_jvp(self, ctx, *_):
        primals, tangents = zip(*ctx.duals, strict=True)
        results = ctx.result if isinstance(ctx.result, tuple) else (ctx.result,)
        del ctx.duals, ctx.result
        with forward_ad._set_fwd_grad_enabled(True):  # for the outer levels
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
        # not an autograd.Function: under torch.func those call the dispatcher, which called us
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
    """Each argument with its tangent or None; None if no argument has a tangent."""
    found = [forward_ad.unpack_dual(a) if isinstance(a, Tensor) else (a, None) for a in args]
    return found if any(tangent is not None for _, tangent in found) else None


def _wanted(ctx: Any, needed: Sequence[bool]) -> tuple[bool, ...]:
    """
    Which derivatives the running backward pass uses.

    ``needs_input_grad`` lists those that could be asked for, which for forces includes the parameters'. The
    engine knows which earlier nodes it is going to run, but does not say so for leaves.
    """
    if _functorch_is_active() or not any(needed):
        return tuple(needed)
    found, nodes = list(needed), iter(ctx.next_functions)
    for n, is_tensor in enumerate(ctx.tensors):
        node = next(nodes)[0] if is_tensor else None
        if found[n] and node is not None:
            # a private function of torch; without it, derivatives are computed needlessly
            with contextlib.suppress(RuntimeError, AttributeError):
                found[n] = torch._C._will_engine_execute_node(node)
    return tuple(found)


_functorch_is_active = torch._C._are_functorch_transforms_active


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that registers a kernel as the operator ``name`` in `torch.ops`."""
    return lambda kernel: Operator(name, kernel)
