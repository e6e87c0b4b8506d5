"""
A simulated GPU: tensors that say ``cuda:0`` and hold memory of the CPU, so that whole models run down their
CUDA branch with real numbers on any machine.

Triton kernels run in the interpreter. It raises where a GPU would: tensors of two devices in one operation, a
pointer of the CPU in a launch, a grid beyond CUDA's limits, ``numpy`` of a tensor on the GPU. It counts
launches, and what makes the host wait: values read back, copies between host and device, masks, lists as
indices and tensors made of numbers of the host. While a CUDA graph is captured all of these raise, and its
replay repeats every operation on the memory that it had. Times mean nothing, and races are not seen.

    with simulated_gpu() as log:
        out = model(to_gpu(batch))
    log.waits, log.launches
"""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.autograd.graph
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map

from scfmlip_kernels.operators import OPERATORS
from simulated_gpu.log import Log, source_line, tapes

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MULTIPROCESSORS, MEMORY = 132, 80 << 30
# operators that launch nothing: memory, views and questions about tensors
_FREE = {
    "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "alias", "lift_fresh",
    "_unsafe_view", "is_same_size", "sym_size", "_reshape_alias", "set_", "resize_", "result_type",
}  # fmt: skip
# operators whose result, or its size, the host has to know
_READS = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "_linalg_check_errors", "nonzero", "masked_select",
    "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc", "inverse_info",
    # libraries that iterate, and look how far they have come
    "_linalg_svd", "_linalg_eigh", "linalg_eig", "_linalg_eigvals", "linalg_lstsq",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class OnGpu(torch.Tensor):
    """A tensor on the simulated GPU."""

    @staticmethod
    def __new__(cls, held: Tensor):
        assert not isinstance(held, OnGpu)
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )
        out.held = held
        return out

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __init__(self, held: Tensor) -> None:
        pass

    def __repr__(self, **_):
        return f"OnGpu({self.held!r})"

    def get_device(self):
        return 0

    def data_ptr(self):
        return self.held.data_ptr()

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self):
        if self.numel():
            _log().wait("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, _, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


_logs: list[Log] = []


def _record(memory: Any, again: Callable[[], Any]) -> None:
    """While a graph is captured: an operation that makes new memory, to be done again on the same memory."""
    if not tapes:
        return
    targets = [held(t) for t in tree_iter(memory) if isinstance(t, Tensor)]

    def repeat() -> None:
        values = [t for t in tree_iter(again()) if isinstance(t, Tensor)]
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)

    tapes[-1].append(repeat)


class Graph:
    """`torch.cuda.CUDAGraph`: all operations once more, on the memory that they had when it was captured."""

    def __init__(self) -> None:
        self.tape: list[Callable[[], Any]] = []

    def replay(self) -> None:
        _log().operators["replay of a graph"] += 1
        with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
            for operation in self.tape:
                operation()


@contextlib.contextmanager
def _capture(graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
    """`torch.cuda.graph`."""
    tapes.append(graph.tape)
    try:
        yield
    finally:
        tapes.pop()


class _Stream:
    """`torch.cuda.Stream`: there is one after another here."""

    def wait_stream(self, other: Any) -> None:
        pass


def _log() -> Log:
    return _logs[-1] if _logs else Log()


def held(x: Any) -> Any:
    """The memory behind tensors, in containers too."""
    return tree_map(lambda t: t.held if isinstance(t, OnGpu) else t, x)


def _placed(x: Any) -> Any:
    """Results on the GPU; conjugates are written out, as a tensor that holds another does not show them."""

    def place(t: Any) -> Any:
        if not isinstance(t, Tensor) or isinstance(t, OnGpu):
            return t
        return OnGpu(t.conj().conj_physical() if t.is_conj() else t)

    return tree_map(place, x)


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator of PyTorch, or of ours, with a tensor on the GPU."""
    log, name = _log(), func._schema.name.split("::")[1]
    if func.namespace == "scfmlip":
        run = OPERATORS[f"scfmlip::{name}"].kernel
        if torch._C._len_torch_function_stack() == 0:
            with _Functions():
                return run(*args, **kwargs)
        return run(*args, **kwargs)
    if name in _READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        log.wait(name)
    host = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor) and not isinstance(t, OnGpu)]
    if name in _INDEXING:
        indices = [i for i in args[1] if isinstance(i, Tensor)]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            log.wait("mask as an index")
        if any(not isinstance(i, OnGpu) for i in indices):
            log.wait("index on the host")
        host = [t for t in host if not any(t is i for i in indices)]
    elif name == "copy_" and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu):
        log.wait("copy between devices")
        host = []
    if any(t.ndim > 0 for t in host) and name != "_to_copy":
        shapes = [tuple(t.shape) for t in host]
        raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU, {shapes}, at {source_line()}")
    writes = any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns)
    view = any(r.alias_info is not None for r in func._schema.returns) and not writes
    if not view and name not in _FREE:
        _count(name)
    return _run(func, name, args, kwargs, view)


def _count(name: str) -> None:
    """One launch of an operator."""
    log = _log()
    log.operators[name] += 1
    log.places[source_line()] += 1


def _shares_memory(out: Any, inputs: Any) -> bool:
    """Whether a result is memory of an input: what ``contiguous`` returns may be, and may be a copy."""
    known = {t.untyped_storage().data_ptr() for t in tree_iter(inputs) if isinstance(t, Tensor)}
    return any(t.untyped_storage().data_ptr() in known for t in tree_iter(out) if isinstance(t, Tensor))


def _run(func: Any, name: str, args: Any, kwargs: dict[str, Any], view: bool) -> Any:
    """The operator on the memory behind its tensors; a copy where a view was possible is a launch."""
    kwargs = dict(kwargs)
    device = kwargs.get("device")
    to_host = device is not None and torch.device(device).type == "cpu"
    if device is not None:
        kwargs["device"] = CPU
    inputs, options = held(args), held(kwargs)
    out = func(*inputs, **options)
    in_place = name.endswith("_") and not name.endswith("__") and isinstance(args[0], OnGpu)
    if in_place and torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # squeeze_ and the like: the sizes that the tensor shows
            func(*args, **kwargs)
        return args[0]
    if tapes and (in_place or isinstance(kwargs.get("out"), OnGpu)):
        tapes[-1].append(lambda: func(*inputs, **options))
    elif not name.startswith(("empty", "new_empty")) and not _shares_memory(out, (inputs, options)):
        if view and name not in _FREE and any(t.numel() for t in tree_iter(out) if isinstance(t, Tensor)):
            _count(name)
        _record(out, lambda: func(*inputs, **options))
    if in_place:
        return args[0]  # the very tensor
    if isinstance(kwargs.get("out"), OnGpu):
        return kwargs["out"]
    if name in ("_local_scalar_dense", "item", "equal", "is_nonzero"):
        return out
    if to_host:
        _log().wait("copy to the host")
        return out
    return _placed(out)


class _Operators(TorchDispatchMode):
    """Makers of tensors that name the GPU, which no tensor there would lead here."""

    def __torch_dispatch__(self, func, _, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        there = device is not None and torch.device(device).type in ("meta", "cuda")
        if there or any(isinstance(t, OnGpu) for t in tree_iter((args, kwargs))):
            with self:
                return _dispatch(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """What the host does before an operator: devices by name, moves, lists as indices."""

    def __torch_function__(self, func, _, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args else None
        if name in ("__getitem__", "__setitem__") and isinstance(first, OnGpu):
            args = (first, _indices(args[1]), *args[2:])
        elif name in ("to", "type_as", "cuda", "cpu") and isinstance(first, Tensor):
            return _move(func, name, args, kwargs)
        elif name == "pin_memory":
            first._is_pinned = True
            return first
        elif _names_gpu(kwargs.get("device")):
            return _make(func, name, args, kwargs)
        elif name == "new_tensor" and isinstance(first, OnGpu):
            _log().wait("tensor of numbers of the host")
            return OnGpu(torch.tensor(args[1], dtype=kwargs.get("dtype", first.dtype)))
        return func(*args, **kwargs)


def _names_gpu(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _indices(index: Any) -> Any:
    """Lists of numbers become tensors on the GPU, for which the host waits."""
    items = index if isinstance(index, tuple) else (index,)
    lists = [
        isinstance(i, list) or (type(i).__module__ == "numpy" and getattr(i, "ndim", 0) > 0) for i in items
    ]
    if not any(lists):
        return index
    _log().wait("list as an index")
    return tuple(OnGpu(torch.as_tensor(i)) if is_list else i for i, is_list in zip(items, lists, strict=True))


def _make(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """A tensor made on the GPU."""
    log, source = _log(), args[0] if args else kwargs.get("data")
    if name in ("tensor", "as_tensor", "asarray") and not isinstance(source, OnGpu):
        log.wait("tensor of numbers of the host")
    elif not name.startswith("empty"):
        log.operators[name] += 1
        log.places[source_line()] += 1
    out = func(*args, **{**kwargs, "device": CPU})
    if not name.startswith("empty"):
        _record(out, lambda: func(*held(args), **{**held(kwargs), "device": CPU}))
    return out if isinstance(out, OnGpu) else OnGpu(out)


def _move(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """A tensor to another device or dtype; moves are differentiable."""
    x, rest, target = args[0], [], {"cuda": CUDA, "cpu": CPU}.get(name)
    for a in args[1:] if target is None else ():
        if isinstance(a, Tensor):
            target = CUDA if isinstance(a, OnGpu) else CPU
            rest.append(a.dtype)
        elif isinstance(a, str | torch.device):
            target = torch.device(a)
        else:
            rest.append(a)
    named = kwargs.pop("device", None)
    target = target if named is None else torch.device(named)
    there = isinstance(x, OnGpu)
    if target is None or (target.type == "cuda") == there:
        return func(x, *rest, **kwargs) if name in ("to", "type_as") and (rest or kwargs) else x
    dtypes = [a for a in (*rest, kwargs.get("dtype")) if isinstance(a, torch.dtype)]
    x = x.to(dtypes[0]) if dtypes else x
    if there or not (kwargs.get("non_blocking") and getattr(x, "_is_pinned", False)):
        _log().wait("copy to the host" if there else "copy to the GPU")
    return (_ToHost if there else _ToGpu).apply(x)


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return OnGpu(x.detach().clone())

    @staticmethod
    def backward(ctx, grad):
        return held(grad)


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.held.detach().clone()

    @staticmethod
    def backward(ctx, grad):
        return _placed(grad)


def _launch(run: Any) -> Any:
    """The interpreter's launch, with a GPU's checks."""

    def launch(self, *args, grid, warmup, **kwargs):
        bound = dict(zip(self.arg_names, args, strict=False)) | kwargs
        name = self.fn.__name__
        for key, value in bound.items():
            if isinstance(value, Tensor) and not isinstance(value, OnGpu):
                raise RuntimeError(f"{name}: the pointer {key} is on the CPU, at {source_line()}")
        sizes = tuple(int(v) for v in (grid(bound) if callable(grid) else grid))
        sizes += (1,) * (3 - len(sizes))
        if sizes[0] >= 2**31 or max(sizes[1:]) > 65535:
            raise RuntimeError(f"{name}: a grid of {sizes} is beyond CUDA's limits")
        _log().kernels[name] += 1
        _log().places[source_line()] += 1
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            given, options = held(args), held(kwargs)
            if tapes:
                tapes[-1].append(lambda: run(self, *given, grid=grid, warmup=warmup, **options))
            return run(self, *given, grid=grid, warmup=warmup, **options)

    return launch


def _with_functions(engine: Any) -> Any:
    """Backward passes see the device names that forward ones do."""

    def run(*args, **kwargs):
        with _Functions():
            return engine(*args, **kwargs)

    return run


@contextlib.contextmanager
def simulated_gpu() -> Iterator[Log]:
    """Inside, ``cuda`` is the simulated GPU; the log is what happened there."""
    from triton.runtime.interpreter import InterpretedFunction

    engine = torch.autograd.graph._engine_run_backward
    properties = types.SimpleNamespace(
        multi_processor_count=MULTIPROCESSORS, name="simulated", major=9, minor=0, total_memory=MEMORY
    )
    cuda = {
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: "simulated",
        "get_device_capability": lambda *_: (9, 0),
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: bool(tapes),
        "synchronize": lambda *_: _log().wait("synchronize"),
        "CUDAGraph": Graph,
        "graph": _capture,
        "Stream": _Stream,
        "current_stream": lambda *_: _Stream(),
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
    }
    _logs.append(Log())
    with contextlib.ExitStack() as stack:
        for name, function in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for module in (torch.autograd.graph, torch.autograd):
            stack.enter_context(mock.patch.object(module, "_engine_run_backward", _with_functions(engine)))
        stack.enter_context(mock.patch.object(InterpretedFunction, "run", _launch(InterpretedFunction.run)))
        stack.enter_context(_Functions())
        stack.enter_context(_Operators())
        try:
            yield _logs[-1]
        finally:
            _logs.pop()


def to_gpu(x: Any) -> Any:
    """Copies on the simulated GPU of tensors in containers, or of a module with all it holds."""
    if not isinstance(x, torch.nn.Module):
        return tree_map(
            lambda t: (
                OnGpu(t.detach().clone()).requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t
            ),
            x,
        )
    module = copy.deepcopy(x)
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = torch.nn.Parameter(OnGpu(p.data.clone()), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = OnGpu(b.detach().clone())
    return module
