"""Rows of the sparse approximate inverse: both paths against float64, and what they are for."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import PATHS
from scfmlip_kernels import fsai_rows
from scfmlip_kernels.fsai_rows.reference import fsai_rows_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

COULOMB = 14.399645


def atoms(n, m, generator, within=6.0):
    """The nearest ``m`` atoms before each of ``n`` in a box, their vectors and widths, and a diagonal."""
    place = 6.0 * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    vectors = place[None] - place[:, None]
    before = torch.arange(n)[None] < torch.arange(n)[:, None]
    far = torch.where(before, vectors.norm(dim=-1), torch.inf)
    near, which = far.topk(m, largest=False) if m <= n else (far, far.argsort(1))
    picked = torch.take_along_dim(vectors, which[..., None], 1)
    used = near < within
    widths = 0.4 + 0.4 * torch.rand(n, generator=generator, dtype=torch.float64)
    diagonal = 6 + COULOMB / (torch.pi**0.5 * widths)
    return picked, which, used, widths, diagonal


def single(*tensors):
    return (t.float() if t.is_floating_point() else t for t in tensors)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 3), (20, 12), (24, 20), (36, 34), (4, 0), (0, 3)])
@pytest.mark.parametrize("path", PATHS)
def test_values(path, n, m, generator, device):
    where = "cpu" if path == "cpu" else device
    given = atoms(n, m, generator) if n else [torch.zeros(s) for s in ((0, m, 3), (0, m), (0, m), (0,), (0,))]
    if not n:
        given[1], given[2] = given[1].long(), given[2].bool()
    got = fsai_rows(*(t.to(where) for t in single(*given)), COULOMB)
    assert got.shape == (n, m + 1)
    assert got.dtype == torch.float32
    assert_close(got.cpu().double(), fsai_rows_reference(*given, COULOMB), 2e-5)


@pytest.mark.parametrize("path", PATHS)
def test_all_lower_atoms_make_the_exact_factor(path, generator, device):
    """With every atom before it among the neighbours, ``G A G^T = 1``."""
    where = "cpu" if path == "cpu" else device
    n = 12
    vectors, which, _, widths, diagonal = given = atoms(n, n, generator, torch.inf)
    rows = fsai_rows(*(t.to(where) for t in single(*given)), COULOMB).cpu().double()
    factor = torch.zeros(n, n + 1, dtype=torch.float64).scatter_add(1, which, rows[:, :-1])[:, :n]
    factor += torch.diag(rows[:, -1])
    r = torch.zeros(n, n, dtype=torch.float64).scatter(1, which, vectors.norm(dim=-1))
    gamma = (widths[:, None] ** 2 + widths[None] ** 2).sqrt()
    a = COULOMB * torch.erf(r / (2**0.5 * gamma)) / torch.where(r > 0, r, 1.0)
    a = torch.where(torch.eye(n).bool(), torch.diag(diagonal), a)
    assert_close(factor @ a @ factor.T, torch.eye(n, dtype=torch.float64), 1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_positive_falls_back(path, generator, device):
    """Negative hardness, and atoms at one place."""
    where = "cpu" if path == "cpu" else device
    vectors, which, used, widths, diagonal = atoms(6, 3, generator)
    diagonal[2] = -5.0
    vectors[5], widths[:] = 0.0, 0.5
    given = (vectors, which, used, widths, diagonal)
    got = fsai_rows(*(t.to(where) for t in single(*given)), COULOMB).cpu().double()
    assert torch.isfinite(got).all()
    assert got[2].tolist() == pytest.approx([0, 0, 0, 5.0**-0.5])
    want = fsai_rows_reference(*given, COULOMB)
    assert_close(got, want, 1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vectors": torch.zeros(2, 1, 3, dtype=torch.float64)}, TypeError, "vectors must be float32"),
        ({"used": torch.ones(2, 1)}, TypeError, "used must be bool"),
        ({"widths": torch.ones(3)}, ValueError, r"widths must be \[2\]"),
        ({"neighbours": torch.tensor([[0], [2]])}, ValueError, "names atoms 0 to 2"),
    ],
)
def test_what_is_refused(change, error, message):
    given = {
        "vectors": torch.zeros(2, 1, 3),
        "neighbours": torch.zeros(2, 1, dtype=torch.int64),
        "used": torch.ones(2, 1, dtype=torch.bool),
        "widths": torch.ones(2),
        "diagonal": torch.ones(2),
    }
    with pytest.raises(error, match=message):
        fsai_rows(**given | change, coulomb=COULOMB)


def test_opcheck(generator):
    given = tuple(single(*atoms(5, 3, generator)))
    torch.library.opcheck(torch.ops.scfmlip.fsai_rows.default, (*given, COULOMB))
