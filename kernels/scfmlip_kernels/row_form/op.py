"""
Operator registration: dispatch, fake tensors, derivatives, public function.

``sum c g_out x_column m_number`` is linear in each of g, x and m, so the derivatives of both operators are
the same two operators with other terms.
"""

import torch
from torch import Tensor

from ..checks import check_floats, check_index, check_shape, check_tensors, outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from ..registry import constant_text
from .kernel import launch_row_form, launch_row_form_sums
from .plain import row_form_plain, row_form_sums_plain
from .terms import RowForm, form_of, turned


@operator("scfmlip::row_form")
def _row_form(x: Tensor, m: Tensor | None, index: Tensor | None, ptr: Tensor | None, text: str) -> Tensor:
    return (launch_row_form if runs_triton(x) else row_form_plain)(x, m, index, text)


@_row_form.register_fake
def _(x, m, index, ptr, text):
    return x.new_empty((x.shape[0], form_of(text).n_out))


@operator("scfmlip::row_form_sums")
def _row_form_sums(
    g: Tensor, x: Tensor, index: Tensor | None, ptr: Tensor | None, n_systems: int, text: str
) -> Tensor:
    if runs_triton(x):
        return launch_row_form_sums(g, x, ptr, n_systems, text)
    return row_form_sums_plain(g, x, index, n_systems, text)


@_row_form_sums.register_fake
def _(g, x, index, ptr, n_systems, text):
    return x.new_empty((n_systems, form_of(text).n_m))


def _setup_form(ctx, inputs, output):
    *tensors, ctx.text = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _form_backward(ctx, grad):
    x, m, index, ptr = ctx.saved_tensors
    d_x = d_m = None
    if grad is not None and ctx.needs_input_grad[0]:
        d_x = torch.ops.scfmlip.row_form(grad, m, index, ptr, turned(ctx.text, "x"))
    if grad is not None and ctx.needs_input_grad[1]:
        if index is None and len(m) == len(x):
            d_m = torch.ops.scfmlip.row_form(x, grad, None, None, turned(ctx.text, "m"))
        else:
            text = turned(ctx.text, "linear m")
            d_m = torch.ops.scfmlip.row_form_sums(grad, x, index, ptr, len(m), text)
    return d_x, d_m, None, None, None


def _form_jvp(args, tangents):
    x, m, index, ptr, text = args
    total = None
    if tangents[0] is not None:
        total = torch.ops.scfmlip.row_form(tangents[0], m, index, ptr, turned(text, "linear x"))
    if tangents[1] is not None:
        term = torch.ops.scfmlip.row_form(x, tangents[1], index, ptr, turned(text, "linear m"))
        total = term if total is None else total + term
    return total


def _setup_sums(ctx, inputs, output):
    *tensors, _, ctx.text = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _sums_backward(ctx, grad):
    g, x, index, ptr = ctx.saved_tensors
    d_g = d_x = None
    if grad is not None and ctx.needs_input_grad[0]:
        d_g = torch.ops.scfmlip.row_form(x, grad, index, ptr, turned(ctx.text, "linear m"))
    if grad is not None and ctx.needs_input_grad[1]:
        text = turned(turned(ctx.text, "linear m"), "x")
        d_x = torch.ops.scfmlip.row_form(g, grad, index, ptr, text)
    return d_g, d_x, None, None, None, None


def _sums_jvp(args, tangents):
    g, x, *rest, text = args
    total = None
    if tangents[0] is not None:
        total = torch.ops.scfmlip.row_form_sums(tangents[0], x, *rest, text)
    if tangents[1] is not None:
        term = torch.ops.scfmlip.row_form_sums(g, tangents[1], *rest, turned(text, "linear x"))
        total = term if total is None else total + term
    return total


_row_form.register_autograd(_form_backward, setup_context=_setup_form, jvp=_form_jvp)
_row_form_sums.register_autograd(_sums_backward, setup_context=_setup_sums, jvp=_sums_jvp)
vmap_by_loop(_row_form, "row_form")
vmap_by_loop(_row_form_sums, "row_form_sums")


def _check_systems(op: str, n_systems: int, n_rows: int, index: Tensor | None, ptr: Tensor | None) -> None:
    if n_systems == 1 and index is None:
        return
    if index is None or ptr is None:
        raise ValueError(f"{op}: with {n_systems} systems and {n_rows} rows index and ptr are needed")
    check_shape(op, "index", index, (n_rows,))
    check_shape(op, "ptr", ptr, (n_systems + 1,))
    check_index(op, "index", index, n_systems, "systems")


def row_form(
    x: Tensor,
    form: RowForm,
    m: Tensor | None = None,
    index: Tensor | None = None,
    ptr: Tensor | None = None,
) -> Tensor:
    """
    Columns made of sums of products: a column of x, a number of the row's system, and a factor.

    Columns in another order and scale, vectors turned by a matrix of their system, and sums of such are forms
    of this kind, each in one launch.

    Args:
        x: ``[n_rows, n_x]`` float32 or float64.
        form: The terms.
        m: ``[n_systems, n_m]`` numbers of the systems, same dtype, or ``[n_rows, n_m]`` of the rows without
            an ``index``; None if the form has none.
        index: ``[n_rows]`` int64 system of each row, not decreasing; may be None for one system.
        ptr: ``[n_systems + 1]`` int64 first row of each system; goes with ``index``.

    Returns:
        ``[n_rows, n_out]``. Differentiable any number of times in ``x`` and ``m``.

    Raises:
        TypeError: for another dtype, or different ones.
        ValueError: for shapes that do not match, or an inconsistent form.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import RowForm, row_form
        >>> turn = RowForm(2, 4, 2, tuple((i, j, 2 * i + j, 1.0) for i in range(2) for j in range(2)))
        >>> row_form(torch.tensor([[1.0, 2.0]]), turn, torch.tensor([[0.0, -1.0, 1.0, 0.0]]))
        tensor([[-2.,  1.]])
    """
    text = constant_text(form)
    x, m = outside_autocast(x, m)
    tensors = {"x": x} if m is None else {"x": x, "m": m}
    check_tensors("row_form", **tensors)
    check_floats("row_form", **tensors)
    check_shape("row_form", "x", x, ("n_rows", form.n_x))
    if m is None:
        if form.n_m:
            raise ValueError(f"row_form: this form has {form.n_m} numbers of systems: pass m")
        return torch.ops.scfmlip.row_form(x, None, None, None, text)
    check_shape("row_form", "m", m, ("n_systems", form.n_m))
    if index is not None or len(m) != len(x):
        _check_systems("row_form", len(m), len(x), index, ptr)
    return torch.ops.scfmlip.row_form(x, m, index, ptr, text)


def row_form_sums(
    g: Tensor,
    x: Tensor,
    form: RowForm,
    n_systems: int = 1,
    index: Tensor | None = None,
    ptr: Tensor | None = None,
) -> Tensor:
    """
    Sums over the rows of each system of products of two columns: the derivative of `row_form` in ``m``.

    Args:
        g: ``[n_rows, n_out]`` float32 or float64.
        x: ``[n_rows, n_x]``, same dtype.
        form: The terms; those without a number of the system are left out.
        n_systems: Number of systems.
        index: As in `row_form`.
        ptr: As in `row_form`.

    Returns:
        ``[n_systems, n_m]``, summed in float64. Differentiable any number of times in ``g`` and ``x``.

    Raises:
        TypeError: for another dtype, or different ones.
        ValueError: for shapes that do not match, or an inconsistent form.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import RowForm, row_form_sums
        >>> dipole = RowForm(3, 3, 1, tuple((0, i, i, 1.0) for i in range(3)))
        >>> row_form_sums(torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.0, 0, 0], [0, 0, 2]]), dipole)
        tensor([[ 0.,  0., -2.]])
    """
    text = constant_text(form)
    g, x = outside_autocast(g, x)
    check_tensors("row_form_sums", g=g, x=x)
    check_floats("row_form_sums", g=g, x=x)
    check_shape("row_form_sums", "g", g, (x.shape[0], form.n_out))
    check_shape("row_form_sums", "x", x, ("n_rows", form.n_x))
    _check_systems("row_form_sums", n_systems, len(x), index, ptr)
    return torch.ops.scfmlip.row_form_sums(g, x, index, ptr, n_systems, text)
