"""Steps along conjugate directions: both paths against the definition, and whole solves."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import PATHS, pointers, submodule, system_of
from scfmlip_kernels import conjugate_move, conjugate_turn
from scfmlip_kernels.conjugate_move.layout import Progress, Scales
from scfmlip_kernels.conjugate_move.reference import conjugate_move_reference, conjugate_turn_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
# atoms of each system: one, none, more than a block of rows, several parts
SIZES = [[3], [1, 0, 4], [0, 700], [2, 600, 1200, 5]]


def draws(n_systems, n_rows, generator):
    """Rows, progress and scales as in the middle of a solve, with systems in every state."""
    rows = torch.randn(6, n_rows, generator=generator, dtype=F64).unbind()
    n = torch.arange(n_systems)
    numbers = torch.rand(n_systems, generator=generator, dtype=F64) + 0.5
    now = Progress(
        rz=torch.where(n % 5 == 4, 0.0, numbers),
        residual=0.1 * numbers,
        converged=(n % 3 == 1).double(),
        rounded=(n % 2 == 0).double(),
        best=0.05 + 0 * numbers,
        since=(24 + n % 3).double(),
        status=torch.tensor([1, 1, 0, 1, 4])[n % 5].double(),
        iterations=(3 + n).double(),
    )
    scales = Scales(*(10.0 ** torch.randint(-2, 3, (9, n_systems), generator=generator)).double())
    return rows, torch.stack(now), torch.stack(scales)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_halves(path, sizes, constrained, generator, device):
    where = "cpu" if path == "cpu" else device
    ptr = pointers(sizes)
    rows, progress, scales = draws(len(sizes), int(ptr[-1]), generator)
    p, z, along, x, s, g = rows
    image = 0.5 * p + 0.1 * z  # mostly positive
    ones = (torch.arange(len(x)) % 4 == 0).double()
    options = {"constrained": constrained}

    def both(function, reference, *args, **more):
        got = function(*(t.to(where) for t in args), **options, **more)
        want = reference(*args, **options, **more)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-11, atol=1e-11, equal_nan=True)
        return want

    for keep in (False, True):
        moved = both(
            conjugate_move,
            conjugate_move_reference,
            p,
            image,
            x,
            s,
            g,
            ones,
            ptr,
            progress,
            scales,
            keep=keep,
        )
    x, s, g, met, _ = moved
    both(conjugate_turn, conjugate_turn_reference, z, g, s, p, ones, along, ptr, progress, met, scales)


@pytest.mark.parametrize("path", PATHS)
def test_systems_stop_alone(path, device):
    """One goes on, one is flat, one meets NaN, one infinity, and one had ended before."""
    where = "cpu" if path == "cpu" else device
    image = torch.tensor([2.0, -1.0, torch.nan, torch.inf, 2.0], dtype=F64)
    ones, zeros = torch.ones(5, dtype=F64), torch.zeros(5, dtype=F64)
    progress = torch.stack(
        Progress(ones, ones, zeros, zeros, ones, zeros, torch.tensor([1.0, 1, 1, 1, 0]).double(), zeros)
    )
    scales = torch.stack(Scales(ones, ones, ones, ones, 1e-9 * ones, zeros, zeros, 25 * ones, zeros))
    ptr = torch.arange(6)
    args = (t.to(where) for t in (ones, image, zeros, ones, ones, ones, ptr, progress, scales))
    point, slope, gradient, met, kept = (t.cpu() for t in conjugate_move(*args, constrained=False, keep=True))
    assert met[0].tolist() == [1, 2, 3, 3, 0]
    assert met[1].tolist() == [1, 0, 0, 0, 0]
    assert point.tolist() == [0.5, 0, 0, 0, 0]
    assert slope.tolist() == gradient.tolist() == [2.0, 1, 1, 1, 1]
    assert_close(kept[0], torch.tensor([0.5**0.5, 0, 0, 0, 0], dtype=F64), 1e-14)
    tensors = (gradient, gradient, slope, ones, ones, zeros, ptr, progress, met, scales)
    direction, after = conjugate_turn(*(t.to(where) for t in tensors), constrained=False)
    assert direction.tolist() == [4.0 - 2.0, 1, 1, 1, 1]
    assert after[6].tolist() == [1, 2, 3, 3, 0]
    assert after[7].tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("path", PATHS)
def test_a_solve(path, generator, device):
    """Systems of different sizes at given total charges, against the matrices' own solutions."""
    where = "cpu" if path == "cpu" else device
    sizes = [5, 1, 9]
    ptr, system = pointers(sizes), system_of(sizes)
    root = torch.randn(15, 15, generator=generator, dtype=F64) * (system[:, None] == system)
    a, b = root @ root.T + 4 * torch.eye(15, dtype=F64), torch.randn(15, generator=generator, dtype=F64)
    inverse = 1 / a.diagonal()
    count = torch.tensor(sizes, dtype=F64)
    weight = torch.zeros(3, dtype=F64).index_add(0, system, inverse)

    def free(v, scale):
        """Without the part that adds charge."""
        sums = torch.zeros(3, dtype=F64).index_add(0, system, v)
        return v - (sums / (count if scale is None else weight))[system] * (1 if scale is None else scale)

    g = free(b, None)
    z = free(inverse * g, inverse)
    ones = torch.ones(3, dtype=F64)

    def sums(v):
        return torch.zeros(3, dtype=F64).index_add(0, system, v)

    scale = sums(g * g).sqrt().clamp(min=1e-300)
    start = Progress(sums(g * z), ones, 0 * ones, 0 * ones, ones, 0 * ones, ones, 0 * ones)
    progress = torch.stack(start._replace(status=(sums(g * g) > 1e-25).double())).to(where)
    limits = (1e-12 * ones, 1e-15 * ones, 1e-9 * ones, 25 * ones, 0 * ones)
    scales = torch.stack(Scales(scale, scale, count, weight, *limits))
    tensors = (a, 0 * b, b, g, -z, torch.ones_like(b), inverse, ptr, scales)
    a, x, s, g, p, one, along, ptr, scales = (t.to(where) for t in tensors)
    for _ in range(12):
        x, s, g, met, _ = conjugate_move(p, a @ p, x, s, g, one, ptr, progress, scales)
        p, progress = conjugate_turn(along * g, g, s, p, one, along, ptr, progress, met, scales)
    assert progress[6].tolist() == [0, 0, 0]
    assert progress[7, 1] == 0  # an atom alone keeps its charge
    assert float(torch.zeros(3, dtype=F64).index_add(0, system, x.cpu()).abs().max()) < 1e-13
    for k, n in enumerate(sizes):
        here = system == k
        block = torch.ones(n + 1, n + 1, dtype=F64)
        block[:n, :n], block[n, n] = a.cpu()[here][:, here], 0
        want = torch.linalg.solve(block, torch.cat((-b[here], b.new_zeros(1))))[:n]
        torch.testing.assert_close(x.cpu()[here], want, rtol=1e-10, atol=1e-10)


def test_parts_of_systems():
    parts = submodule("conjugate_move.kernel").parts_of
    assert parts(1, 1) == parts(100, 1) == parts(6400, 64) == parts(0, 5) == parts(10**6, 10**5) == 1
    assert parts(20_000, 2) == 40
    assert parts(10**7, 1) == 64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": torch.zeros(3)}, TypeError, "image must be float64"),
        ({"point": torch.zeros(2, dtype=F64)}, ValueError, r"point must be \[3\]"),
        ({"ptr": torch.tensor([0, 2])}, ValueError, "ptr must rise from 0 to 3"),
        ({"ptr": torch.tensor([0.0, 3.0])}, TypeError, "ptr must be int64"),
        ({"progress": torch.zeros(7, 1, dtype=F64)}, ValueError, r"progress must be \[8, 1\]"),
    ],
)
def test_what_is_refused(change, error, message):
    names = ("direction", "image", "point", "slope", "gradient", "ones")
    rows = {name: torch.zeros(3, dtype=F64) for name in names}
    numbers = {"progress": torch.zeros(8, 1, dtype=F64), "scales": torch.ones(9, 1, dtype=F64)}
    arguments = {**rows, "ptr": torch.tensor([0, 3]), **numbers, **change}
    with pytest.raises(error, match=message):
        conjugate_move(**arguments)


def test_opcheck(generator):
    ptr = pointers([2, 3])
    (p, z, along, x, s, g), progress, scales = draws(2, 5, generator)
    ones = torch.ones_like(x)
    for keep in (False, True):
        given = (p, p + 0.1 * z, x, s, g, ones, ptr, progress, scales, True, keep)
        torch.library.opcheck(torch.ops.scfmlip.conjugate_move.default, given)
    met = conjugate_move(*given[:9])[3]
    given = (z, g, s, p, ones, along, ptr, progress, met, scales, True)
    torch.library.opcheck(torch.ops.scfmlip.conjugate_turn.default, given)
