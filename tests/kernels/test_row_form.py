"""Forms of rows: both paths against one term after another, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives, pointers, system_of
from scfmlip_kernels import RowForm, row_form, row_form_sums
from scfmlip_kernels.row_form.reference import row_form_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
# a column without terms, terms without a column and without a number, and a column with several
FORM = RowForm(
    4,
    3,
    5,
    ((0, 2, 1, 0.5), (0, 0, 0, -1.0), (1, 3, -1, 2.0), (2, -1, 2, 1.5), (4, 1, 2, 1.0), (4, 1, 0, 3.0)),
)


def sums_reference(g, x, form, n_systems, index):
    """The derivative in m by its definition."""
    m = torch.zeros(n_systems, form.n_m, dtype=x.dtype, requires_grad=True)
    value = row_form_reference(x, form, m, index)
    return torch.autograd.grad((g * value).sum(), m, create_graph=True, materialize_grads=True)[0]


def problem(sizes, generator):
    n, s = sum(sizes), len(sizes)
    x, m, g = (torch.randn(a, b, generator=generator, dtype=F64) for a, b in ((n, 4), (s, 3), (n, 5)))
    return x, m, g, system_of(sizes), pointers(sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [[3], [0], [2, 0, 70], [300]], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, sizes, dtype, generator, device):
    x, m, g, index, ptr = problem(sizes, generator)
    where = "cpu" if path == "cpu" else device
    given = tuple(t.to(where, dtype).requires_grad_() for t in (x, m, g))
    exact = tuple(t.detach().to("cpu", F64).requires_grad_() for t in given)
    systems = (None, None) if len(sizes) == 1 else (index.to(where), ptr.to(where))
    if sizes == [1]:
        index = torch.zeros(1, dtype=torch.int64)
    value = row_form(given[0], FORM, given[1], *systems)
    want = row_form_reference(exact[0], FORM, exact[1], index)
    for a, b in zip([value, *derivatives(value, given[:2], 2)],
                    [want, *derivatives(want, exact[:2], 2)], strict=True):  # fmt: skip
        assert_close(a, b, 1e-5 if dtype == torch.float32 else None)
    value = row_form_sums(given[2], given[0], FORM, len(sizes), *systems)
    want = sums_reference(exact[2], exact[0], FORM, len(sizes), index)
    pairs = zip(
        [value, *derivatives(value, (given[2], given[0]), 2)],
        [want, *derivatives(want, (exact[2], exact[0]), 2)],
        strict=True,
    )
    for a, b in pairs:
        assert a.dtype == dtype
        assert_close(a, b, 1e-5 if dtype == torch.float32 else None)


@pytest.mark.parametrize("path", PATHS)
def test_numbers_of_rows(path, generator, device):
    """Without an index, a number for every row."""
    where = "cpu" if path == "cpu" else device
    x, m = (torch.randn(7, k, generator=generator, dtype=F64).to(where).requires_grad_() for k in (4, 3))
    value, want = row_form(x, FORM, m), row_form_reference(x, FORM, m, torch.arange(7).to(where))
    for a, b in zip([value, *derivatives(value, (x, m), 2)],
                    [want, *derivatives(want, (x, m), 2)], strict=True):  # fmt: skip
        assert_close(a, b)


@pytest.mark.parametrize("path", PATHS)
def test_strided_rows(path, generator, device):
    """Columns of a wider matrix, and a transposed one."""
    wide = torch.randn(9, 6, generator=generator, dtype=F64).to("cpu" if path == "cpu" else device)
    form = RowForm(4, 0, 2, ((0, 3, -1, 1.0), (1, 0, -1, 2.0)))
    for x in (wide[:, 1:5], wide[:6, :4].T[:, :4]):
        assert_close(row_form(x, form), row_form_reference(x, form))


def test_gradcheck(generator):
    x, m, g, index, ptr = problem([2, 3], generator)
    given = tuple(t.requires_grad_() for t in (x, m, g))
    for run, some in (
        (lambda a, b: row_form(a, FORM, b, index, ptr), given[:2]),
        (lambda a, b: row_form_sums(a, b, FORM, 2, index, ptr), (given[2], given[0])),
    ):
        assert torch.autograd.gradcheck(run, some, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, some)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    from scfmlip_kernels.registry import describe

    x, m, g, index, ptr = problem([2, 3], generator)
    text = describe(FORM)
    given = tuple(t.requires_grad_() for t in (x, m, g))
    torch.library.opcheck(torch.ops.scfmlip.row_form.default, (*given[:2], index, ptr, text))
    torch.library.opcheck(torch.ops.scfmlip.row_form_sums.default, (given[2], given[0], index, ptr, 2, text))


def test_refuses():
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match="this form has 3 numbers of systems: pass m"):
        row_form(x, FORM)
    with pytest.raises(ValueError, match="with 3 systems and 2 rows index and ptr are needed"):
        row_form(x, FORM, torch.ones(3, 3))
    with pytest.raises(ValueError, match="a term of column 5 of 5"):
        row_form(x, FORM._replace(terms=((5, 0, 0, 1.0),)), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"g must be \[2, 5\]"):
        row_form_sums(x, x, FORM)
    with pytest.raises(TypeError, match="convert one of them"):
        row_form(x, FORM, torch.ones(1, 3).double())
