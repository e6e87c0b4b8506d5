"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import torch
from torch import Tensor

from ..checks import outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..indexed_linear.groups import check_species, sort_species
from ..operators import operator
from ..registry import constant_text
from .cpu import (
    symmetric_contraction_backward_cpu,
    symmetric_contraction_cpu,
    symmetric_contraction_second_cpu,
)
from .kernel import (
    launch_symmetric_contraction,
    launch_symmetric_contraction_inputs,
    launch_symmetric_contraction_weights,
)
from .polynomial import (
    SymmetricPolynomial,
    directional,
    polynomial_of,
    reduced_polynomial,
    reduced_shape,
    reduction_matrix,
    weight_reduction,
)


@operator("scfmlip::symmetric_contraction")
def _symmetric_contraction(
    x: Tensor, weights: Tensor, index: Tensor, order: Tensor, ptr: Tensor, text: str
) -> Tensor:
    if runs_triton(x):
        return launch_symmetric_contraction(x, weights, index, text)
    return symmetric_contraction_cpu(x, weights, index, order, text)


@_symmetric_contraction.register_fake
def _(x, weights, index, order, ptr, text):
    return x.new_empty((*x.shape[:2], polynomial_of(text).n_outputs))


@operator("scfmlip::symmetric_contraction_backward")
def _symmetric_contraction_backward(
    x: Tensor,
    weights: Tensor,
    grad: Tensor,
    index: Tensor,
    order: Tensor,
    ptr: Tensor,
    text: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    if runs_triton(x):
        d_x = d_weights = None
        if wanted[0]:
            d_x = launch_symmetric_contraction_inputs(x, weights, grad, index, text, x.shape[2])
        if wanted[1]:
            d_weights = launch_symmetric_contraction_weights(x, grad, order, ptr, text)
        return x.new_empty(0) if d_x is None else d_x, x.new_empty(0) if d_weights is None else d_weights
    return symmetric_contraction_backward_cpu(x, weights, grad, index, order, ptr, text, wanted)


@_symmetric_contraction_backward.register_fake
def _(x, weights, grad, index, order, ptr, text, wanted):
    d_x, d_weights = (t.new_empty(t.shape if w else (0,)) for t, w in zip((x, weights), wanted, strict=True))
    return d_x, d_weights


@operator("scfmlip::symmetric_contraction_reduce")
def _reduce(weights: Tensor, text: str, transposed: bool) -> Tensor:
    matrix = reduction_matrix(text, weights.dtype, weights.device)
    return torch.matmul(matrix.mT if transposed else matrix, weights)


@_reduce.register_fake
def _(weights, text, transposed):
    n_new = reduced_shape(text)[int(transposed)]
    return weights.new_empty((weights.shape[0], n_new, weights.shape[2]))


def _setup_context_reduce(ctx, inputs, output):
    _, ctx.text, ctx.transposed = inputs


def _reduce_backward(ctx, grad):
    return torch.ops.scfmlip.symmetric_contraction_reduce(grad, ctx.text, not ctx.transposed), None, None


_reduce.register_autograd(_reduce_backward, setup_context=_setup_context_reduce)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.text = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    x, weights, *tables = ctx.saved_tensors
    wanted = [bool(n) for n in ctx.needs_input_grad[:2]]
    found = torch.ops.scfmlip.symmetric_contraction_backward(x, weights, grad, *tables, ctx.text, wanted)
    return *(g if w else None for g, w in zip(found, wanted, strict=True)), *(None,) * 4


def _jvp(args, tangents):
    x, weights, *tables, text = args
    along_x, along_weights, *_ = tangents
    return _from_directions(x, weights, None, along_x, along_weights, tables, text, [False, False, True])[2]


_symmetric_contraction.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)


def _setup_context_backward(ctx, inputs, output):
    *tensors, ctx.text, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _double_backward(ctx, along_x, along_weights):
    x, weights, grad, *tables = ctx.saved_tensors
    along_x, along_weights = (
        a if w else None for a, w in zip((along_x, along_weights), ctx.wanted, strict=True)
    )
    wanted = [bool(n) for n in ctx.needs_input_grad[:3]]
    found = _second(x, weights, grad, along_x, along_weights, tables, ctx.text, wanted)
    return *found, *(None,) * 5


def _jvp_backward(args, tangents):
    x, weights, grad, *tables, text, wanted = args
    along_x, along_weights, along_grad, *_ = tangents
    wanted = [*wanted, False]
    found = _second_and_first(x, weights, grad, along_x, along_weights, along_grad, tables, text, wanted)
    return tuple(found[:2])


_symmetric_contraction_backward.register_autograd(
    _double_backward, setup_context=_setup_context_backward, jvp=_jvp_backward
)


def _second(x, weights, grad, along_x, along_weights, tables, text, wanted) -> list[Tensor | None]:
    """The result of `_from_directions`, in one sweep if there is a direction of x."""
    if along_x is None or not any(wanted):
        return _from_directions(x, weights, grad, along_x, along_weights, tables, text, wanted)
    found = torch.ops.scfmlip.symmetric_contraction_second(
        x, weights, grad, along_x, along_weights, *tables, text, wanted
    )
    return [f if w else None for f, w in zip(found, wanted, strict=True)]


def _second_and_first(
    x, weights, grad, along_x, along_weights, along_grad, tables, text, wanted
) -> list[Tensor | None]:
    """Derivatives of the first derivatives along x and weights, and derivatives of the values along grad."""
    found = _second(x, weights, grad, along_x, along_weights, tables, text, wanted)
    if along_grad is not None and any(wanted[:2]):
        more = torch.ops.scfmlip.symmetric_contraction_backward(
            x, weights, along_grad, *tables, text, wanted[:2]
        )
        for n, want in enumerate(wanted[:2]):
            if want:
                before = found[n]
                found[n] = more[n] if before is None else before + more[n]
    return found


def _from_directions(x, weights, grad, along_x, along_weights, tables, text, wanted) -> list[Tensor | None]:
    """
    Derivatives of the first derivatives in x, weights and grad, from the first two operators.

    Take the first derivatives of ``L(x, w, g) = sum out g`` times their cotangents. The part for x is the
    derivative of L along a direction of x, which is L of another polynomial. The part for the weights is L
    with the cotangent in place of the weights.
    """
    ops = torch.ops.scfmlip
    needs_x, needs_weights, needs_grad = wanted
    sums: list[Tensor | None] = [None, None, None]

    def add(place: int, value: Tensor) -> None:
        before = sums[place]
        sums[place] = value if before is None else before + value

    if along_x is not None:
        both, along_text = torch.cat((x, along_x), -1), directional(text)
        if needs_grad:
            add(2, ops.symmetric_contraction(both, weights, *tables, along_text))
        if needs_x or needs_weights:
            d_both, d_weights = ops.symmetric_contraction_backward(
                both, weights, grad, *tables, along_text, [needs_x, needs_weights]
            )
            if needs_x:
                add(0, d_both[..., : x.shape[-1]])
            if needs_weights:
                add(1, d_weights)
    if along_weights is not None:
        if needs_grad:
            add(2, ops.symmetric_contraction(x, along_weights, *tables, text))
        if needs_x:
            wants = [True, False]
            add(0, ops.symmetric_contraction_backward(x, along_weights, grad, *tables, text, wants)[0])
    return sums


def _second_triton(
    x, weights, grad, along_x, along_weights, index, order, ptr, text, wanted
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum that `_from_directions` describes, computed by the kernels."""
    d_x, d_weights, d_grad = (x.new_empty(0) for _ in range(3))
    both, along_text = torch.cat((x, along_x), -1), directional(text)
    if wanted[0]:
        d_x = launch_symmetric_contraction_inputs(both, weights, grad, index, along_text, x.shape[2])
        if along_weights is not None:
            d_x += launch_symmetric_contraction_inputs(x, along_weights, grad, index, text, x.shape[2])
    if wanted[1]:
        d_weights = launch_symmetric_contraction_weights(both, grad, order, ptr, along_text)
    if wanted[2]:
        d_grad = launch_symmetric_contraction(both, weights, index, along_text)
        if along_weights is not None:
            d_grad += launch_symmetric_contraction(x, along_weights, index, text)
    return d_x, d_weights, d_grad


@operator("scfmlip::symmetric_contraction_second")
def _symmetric_contraction_second(
    x: Tensor,
    weights: Tensor,
    grad: Tensor,
    along_x: Tensor,
    along_weights: Tensor | None,
    index: Tensor,
    order: Tensor,
    ptr: Tensor,
    text: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    if runs_triton(x):
        return _second_triton(x, weights, grad, along_x, along_weights, index, order, ptr, text, wanted)
    return symmetric_contraction_second_cpu(
        x, weights, grad, along_x, along_weights, index, order, ptr, text, wanted
    )


@_symmetric_contraction_second.register_fake
def _(x, weights, grad, along_x, along_weights, index, order, ptr, text, wanted):
    inputs = (x, weights, grad)
    return tuple(t.new_empty(t.shape if w else (0,)) for t, w in zip(inputs, wanted, strict=True))


def _setup_context_second(ctx, inputs, output):
    *tensors, ctx.text, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _third_backward(ctx, along_x, along_weights, along_grad):
    """Derivatives of the result of `_from_directions`, term by term, from all three operators."""
    x, weights, grad, direction, other_weights, *tables = ctx.saved_tensors
    along_x, along_weights, along_grad = (
        a if w else None for a, w in zip((along_x, along_weights, along_grad), ctx.wanted, strict=True)
    )
    needs = [bool(n) for n in ctx.needs_input_grad[:5]]
    n = x.shape[-1]
    sums: list[Tensor | None] = [None] * 5

    def add(x, weights, along_x, along_weights, text, places) -> None:
        wanted = [any(needs[p] for p in place) for place in places]
        found = _second_and_first(x, weights, grad, along_x, along_weights, along_grad, tables, text, wanted)
        for place, value in zip(places, found, strict=True):
            if value is None:
                continue
            for i, part in enumerate(place):
                if needs[part]:
                    mine = value if len(place) == 1 else value[..., i * n : (i + 1) * n]
                    before = sums[part]
                    sums[part] = mine if before is None else before + mine

    both, along_both = torch.cat((x, direction), -1), None
    if along_x is not None:
        along_both = torch.cat((along_x, torch.zeros_like(along_x)), -1)
    add(both, weights, along_both, along_weights, directional(ctx.text), ((0, 3), (1,), (2,)))
    if other_weights is not None:
        add(x, other_weights, along_x, None, ctx.text, ((0,), (4,), (2,)))
    return *sums, *(None,) * 5


def _jvp_second(args, tangents):
    x, weights, grad, direction, other_weights, *tables, text, wanted = args
    along_x, along_weights, along_grad, along_direction, along_other = tangents[:5]
    both, along_both = torch.cat((x, direction), -1), None
    if along_x is not None or along_direction is not None:
        halves = (torch.zeros_like(x) if a is None else a for a in (along_x, along_direction))
        along_both = torch.cat(tuple(halves), -1)
    found = _second_and_first(
        both, weights, grad, along_both, along_weights, along_grad, tables, directional(text), wanted
    )
    if found[0] is not None:
        found[0] = found[0][..., : x.shape[-1]]
    if other_weights is not None:
        mine = [wanted[0], False, wanted[2]]
        more = _second_and_first(x, other_weights, grad, along_x, along_other, along_grad, tables, text, mine)
        found = [a if b is None else b if a is None else a + b for a, b in zip(found, more, strict=True)]
    return tuple(found)


_symmetric_contraction_second.register_autograd(
    _third_backward, setup_context=_setup_context_second, jvp=_jvp_second
)


def symmetric_contraction(
    x: Tensor, weights: Tensor, index: Tensor, polynomial: SymmetricPolynomial
) -> Tensor:
    r"""
    Evaluate a polynomial in each atom's and channel's components, with the weights of the atom's species.

    ``out[n, c, m] = sum_t a_t weights[index_n, w_t, c] prod_(i in t) x[n, c, i]``, summed over the terms t of
    the polynomial with output m. Weights whose terms are linear combinations of others' are merged first.

    Args:
        x: Atomic basis, ``[n_atoms, n_channels, n_inputs]`` float32 or float64.
        weights: ``[n_species, n_weights, n_channels]``, same dtype.
        index: ``[n_atoms]`` int64, species of each atom.
        polynomial: The terms, e.g. from `SymmetricPolynomial.from_dense`.

    Returns:
        ``[n_atoms, n_channels, n_outputs]``. Bitwise reproducible. Differentiable any number of times in
        ``x`` and ``weights``.

    Raises:
        TypeError: for a dtype that is not float32 or float64, different ones, or an index not int64.
        ValueError: for shapes that do not match, tensors on different devices, an inconsistent polynomial,
            and on a CPU for species out of range.

    The product basis of MACE: Batatia et al., arXiv:2206.07697 (2022), eqs. 10 and 11.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import SymmetricPolynomial, symmetric_contraction
        >>> norm = SymmetricPolynomial.from_dense([(0, torch.eye(3).view(1, 3, 3, 1))])  # x.x of a vector
        >>> x = torch.tensor([[[1.0, 2.0, 2.0]], [[0.0, 3.0, 4.0]]])  # two atoms, one channel
        >>> weights = torch.tensor([1.0, 10.0]).view(2, 1, 1)  # of two species
        >>> symmetric_contraction(x, weights, torch.tensor([0, 1]), norm).flatten()
        tensor([  9., 250.])
    """
    text = constant_text(polynomial)
    x, weights = outside_autocast(x, weights)
    shapes = {
        "x": ("n_atoms", "n_channels", polynomial.n_inputs),
        "weights": ("n_species", polynomial.n_weights, "n_channels"),
    }
    check_species("symmetric_contraction", {"x": x, "weights": weights}, index, shapes)
    if x.shape[1] != weights.shape[2]:
        raise ValueError(
            f"symmetric_contraction: x has {x.shape[1]} channels, weights have {weights.shape[2]}"
        )
    fewer = weight_reduction(text, x.dtype)
    if fewer:
        text = reduced_polynomial(text, x.dtype)
        weights = torch.ops.scfmlip.symmetric_contraction_reduce(weights, fewer, False)
    order, ptr = sort_species(index, weights.shape[0])
    return torch.ops.scfmlip.symmetric_contraction(x, weights, index, order, ptr, text)


vmap_by_loop(_symmetric_contraction, "symmetric_contraction")
vmap_by_loop(_symmetric_contraction_backward, "symmetric_contraction_backward")
vmap_by_loop(_symmetric_contraction_second, "symmetric_contraction_second")
vmap_by_loop(_reduce, "symmetric_contraction_reduce")
