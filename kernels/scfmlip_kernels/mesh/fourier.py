"""
Fourier transforms between meshes and half of their waves: two linear operators, adjoint to each other.

The backward passes of PyTorch's real transforms run over all waves in complex numbers, at twice the cost.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..checks import FLOATS, check_tensors
from ..dispatch import loop_over_batch
from ..operators import operator


def _systems(shapes: Sequence[int]) -> Iterator[tuple[tuple[int, int, int], slice, slice]]:
    """Shape, points and waves of each system."""
    point = wave = 0
    for i in range(0, len(shapes), 3):
        a, b, c = shapes[i : i + 3]
        points, waves = a * b * c, a * b * (c // 2 + 1)
        yield (a, b, c), slice(point, point + points), slice(wave, wave + waves)
        point, wave = point + points, wave + waves


def count_points(shapes: Sequence[int]) -> int:
    """Number of mesh points of all systems; ``shapes`` holds three numbers for each."""
    return sum(a * b * c for a, b, c in zip(shapes[::3], shapes[1::3], shapes[2::3], strict=True))


def count_waves(shapes: Sequence[int]) -> int:
    """Number of waves of all systems."""
    return sum(a * b * (c // 2 + 1) for a, b, c in zip(shapes[::3], shapes[1::3], shapes[2::3], strict=True))


@operator("scfmlip::mesh_waves")
def _mesh_waves(values: Tensor, shapes: Sequence[int]) -> Tensor:
    parts = [
        torch.view_as_real(torch.fft.rfftn(values[:, points].unflatten(1, shape), dim=(1, 2, 3))).flatten(
            1, 3
        )
        for shape, points, _ in _systems(shapes)
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, 1) if parts else values.new_zeros((len(values), 0, 2))


@_mesh_waves.register_fake
def _(values, shapes):
    return values.new_empty((values.shape[0], count_waves(shapes), 2))


@operator("scfmlip::mesh_values")
def _mesh_values(waves: Tensor, shapes: Sequence[int]) -> Tensor:
    parts = []
    for (a, b, c), _, place in _systems(shapes):
        half = waves[:, place].unflatten(1, (a, b, c // 2 + 1))
        # the transform adds the mirror images of all waves between the first and the last plane
        half = torch.view_as_complex(half.contiguous()) * 0.5
        half[..., 0] *= 2
        if c % 2 == 0:
            half[..., -1] *= 2
        values = torch.fft.irfftn(half, s=(a, b, c), dim=(1, 2, 3), norm="forward")
        parts.append(values.flatten(1))
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, 1) if parts else waves.new_zeros((len(waves), 0))


@_mesh_values.register_fake
def _(waves, shapes):
    return waves.new_empty((waves.shape[0], count_points(shapes)))


def _setup_context(ctx, inputs, output):
    ctx.shapes = inputs[1]


def _waves_backward(ctx, grad):
    return torch.ops.scfmlip.mesh_values(grad, ctx.shapes), None


def _values_backward(ctx, grad):
    return torch.ops.scfmlip.mesh_waves(grad, ctx.shapes), None


def _channels(op, info, in_dims, values, shapes):
    """Both operators act on channels, so a batch becomes additional channels."""
    if in_dims[0] is None:
        return loop_over_batch(op, info, in_dims, values, shapes)
    values = values.movedim(in_dims[0], 0)
    return op(values.flatten(0, 1), shapes).unflatten(0, values.shape[:2]), 0


_mesh_waves.register_autograd(_waves_backward, setup_context=_setup_context)
_mesh_values.register_autograd(_values_backward, setup_context=_setup_context)


@_mesh_waves.register_vmap
def _(info, in_dims, values, shapes):
    return _channels(torch.ops.scfmlip.mesh_waves, info, in_dims, values, shapes)


@_mesh_values.register_vmap
def _(info, in_dims, waves, shapes):
    return _channels(torch.ops.scfmlip.mesh_values, info, in_dims, waves, shapes)


def _check(op: str, name: str, values: Tensor, shape: list) -> None:
    check_tensors(op, **{name: values})
    if values.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32 or float64, got {values.dtype}: convert them")
    if list(values.shape[1:]) != shape[1:]:
        raise ValueError(f"{op}: {name} must be {shape}, got {list(values.shape)}")


def mesh_waves(values: Tensor, shapes: Sequence[int]) -> Tensor:
    """
    The sums ``sum_g values(g) exp(-2 pi i n.g / shape)`` over each mesh, for half of all waves n.

    Args:
        values: ``[n_channels, n_points]`` float32 or float64, system after system, last axis fastest.
        shapes: Three numbers of mesh points per system, in one list.

    Returns:
        ``[n_channels, n_waves, 2]`` real and imaginary part, in the order of `torch.fft.rfftn`.
        Differentiable any number of times.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import mesh_waves
        >>> line = torch.cos(2 * torch.pi * torch.arange(4) / 4)  # one cosine along the last axis
        >>> waves = mesh_waves(line.expand(4, 4, 4).reshape(1, -1), [4, 4, 4])
        >>> [round(float(c)) for c in waves[0, :3, 0]]  # real parts of n = (0, 0, 0), (0, 0, 1), (0, 0, 2)
        [0, 32, 0]
    """
    _check("mesh_waves", "values", values, ["n_channels", count_points(shapes)])
    return torch.ops.scfmlip.mesh_waves(values.contiguous(), list(shapes))


def mesh_values(waves: Tensor, shapes: Sequence[int]) -> Tensor:
    """
    The real series ``Re sum_n waves(n) exp(2 pi i n.g / shape)`` over the waves of `mesh_waves`, its adjoint.

    Args:
        waves: ``[n_channels, n_waves, 2]`` real and imaginary part.
        shapes: As in `mesh_waves`.

    Returns:
        ``[n_channels, n_points]``. Differentiable any number of times.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import mesh_values
        >>> waves = torch.zeros(1, 4 * 4 * 3, 2)
        >>> waves[0, 1, 0] = 1.0  # the wave n = (0, 0, 1)
        >>> [round(float(v)) for v in mesh_values(waves, [4, 4, 4])[0, :4]]  # a cosine along the last axis
        [1, 0, -1, 0]
    """
    _check("mesh_values", "waves", waves, ["n_channels", count_waves(shapes), 2])
    return torch.ops.scfmlip.mesh_values(waves, list(shapes))
