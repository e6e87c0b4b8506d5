"""What is measured, as data: operators and workloads, their sizes, and who can do them."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["forward", "forward_backward", "double_backward"]
Quantity = Literal["structure_factor", "lattice_field", "gaussian_pairs", "energy", "features", "polar"]

SIGMA = 1.5
WIDTHS = (1.5, 3.0)
# what MACE-POLAR sums to: 1.5 * graph_longrange.gto_basis_kspace_cutoff(widths, l_max = 1)
KSPACE_CUTOFF = 1.5 * 0.75 * 3.0 * 2**0.3 / SIGMA
# eV: forces to better than 1e-5
MESH_TOLERANCE = 2e-5
DENSITY = 0.1  # atoms/angstrom^3, as in water

FORWARD: Mode = "forward"
BACKWARD: Mode = "forward_backward"
DOUBLE: Mode = "double_backward"


@dataclass(frozen=True)
class Size:
    """
    Systems of a batch.

    Attributes:
        atoms: Of one system, on average.
        systems: How many.
        ragged: Whether their sizes go from half to one and a half times ``atoms``.
    """

    atoms: int
    systems: int = 1
    ragged: bool = False

    @property
    def counts(self) -> list[int]:
        """Atoms of each system."""
        if not self.ragged or self.systems == 1:
            return [self.atoms] * self.systems
        step = self.atoms / (self.systems - 1)
        return [round(0.5 * self.atoms + step * i) for i in range(self.systems)]

    def __str__(self) -> str:
        return f"{'~' if self.ragged else ''}{self.atoms}" + (f"x{self.systems}" if self.systems > 1 else "")

    @staticmethod
    def parse(text: str) -> "Size":
        """The inverse of ``str``: "2000", "100x16", "~100x16"."""
        atoms, _, systems = text.lstrip("~").partition("x")
        return Size(int(atoms), int(systems or 1), text.startswith("~"))


@dataclass(frozen=True)
class Case:
    """
    One benchmark.

    Attributes:
        name: Its name on the command line and in the results.
        quantity: What is computed.
        modes: Which derivatives are timed with it; second ones are those of a force loss.
        providers: Who computes it, see `bench.providers`.
        cpu, gpu: Sizes per device.
        dtypes: Of the inputs.
        rank: Of the multipoles (structure factor, pairs) or of the field.
        l_max: 0 for charges, 1 for charges and dipoles.
        open_boundary: Isolated systems instead of crystals.
    """

    name: str
    quantity: Quantity
    modes: tuple[Mode, ...]
    providers: tuple[str, ...]
    cpu: tuple[Size, ...]
    gpu: tuple[Size, ...]
    dtypes: tuple[str, ...] = ("float32",)
    rank: int = 1
    l_max: int = 1
    open_boundary: bool = False


def _sizes(*atoms: int) -> tuple[Size, ...]:
    return tuple(Size(n) for n in atoms)


_CPU = _sizes(100, 500, 1000, 2000)
_GPU = _sizes(100, 1000, 5000, 20000)
_OPS = ("scfmlip", "torch")
_PERIODIC = ("scfmlip", "scfmlip-mesh", "torch", "graph-longrange", "nvalchemi")
_OPEN = ("scfmlip", "scfmlip-compat", "torch", "graph-longrange")

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        # first what the targets are about, so that a run that is cut short has them
        Case(
            "polar",
            "polar",
            (BACKWARD, FORWARD),
            _PERIODIC,
            _CPU,
            _sizes(100, 1000, 2000, 5000, 10000, 20000),
            dtypes=("float32", "float64"),
        ),
        Case(
            "polar_batch",
            "polar",
            (BACKWARD,),
            _PERIODIC,
            (Size(100, 16), Size(100, 16, ragged=True)),
            (Size(100, 16), Size(100, 64), Size(100, 64, ragged=True)),
        ),
        Case(
            "energy",
            "energy",
            (BACKWARD, FORWARD, DOUBLE),
            (*_PERIODIC, "nvalchemi-pme"),
            _CPU,
            _GPU,
            dtypes=("float32", "float64"),
        ),
        Case("features", "features", (BACKWARD, FORWARD, DOUBLE), _PERIODIC, _CPU, _GPU),
        Case(
            "energy_charges",
            "energy",
            (BACKWARD,),
            (*_PERIODIC, "torch-pme-ewald", "torch-pme-mesh", "nvalchemi-pme"),
            _CPU,
            _GPU,
            l_max=0,
        ),
        Case("open_energy", "energy", (BACKWARD, FORWARD), _OPEN, _sizes(20, 100, 300), _sizes(100, 1000),
             open_boundary=True),
        Case("open_features", "features", (BACKWARD, FORWARD), _OPEN, _sizes(20, 100, 300), _sizes(100, 1000),
             open_boundary=True),
        Case("structure_factor_1", "structure_factor", (FORWARD, BACKWARD), _OPS, _CPU, _GPU, rank=1),
        Case("structure_factor_2", "structure_factor", (FORWARD,), _OPS, _CPU, _GPU, rank=2),
        Case("lattice_field_1", "lattice_field", (FORWARD, BACKWARD), _OPS, _CPU, _GPU, rank=1),
        Case("lattice_field_2", "lattice_field", (FORWARD,), _OPS, _CPU, _GPU, rank=2),
        Case("gaussian_pairs_1", "gaussian_pairs", (FORWARD, BACKWARD), _OPS, _sizes(100, 500, 1000),
             _sizes(100, 1000, 5000), rank=1),
    )
}  # fmt: skip

# Peers that are hopeless at size on a CPU, or hold O(atoms x wave vectors) on a GPU: largest total number of
# atoms they are given.
LARGEST: dict[tuple[str, str], int] = {
    ("nvalchemi", "cpu"): 500,
    ("nvalchemi-pme", "cpu"): 500,
    ("torch", "cpu"): 2000,
    ("torch", "cuda"): 10000,
}
