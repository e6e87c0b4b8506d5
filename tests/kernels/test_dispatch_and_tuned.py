"""Which path an operator takes, and the recorded launch parameters."""

import contextlib
import json
from importlib import resources

import pytest
import torch
from tolerances import assert_close

import scfmlip_kernels
from kernels.problems import lattice_problem, submodule
from scfmlip_kernels import backend, structure_factor
from scfmlip_kernels.dispatch import interpreting, runs_triton
from scfmlip_kernels.lattice.tiles import LatticeLaunch, lattice_launch, splits_for
from scfmlip_kernels.tuned import _table, compiler_options, tuned

TABLES = sorted(
    entry.name for entry in resources.files("scfmlip_kernels.tuned").iterdir() if entry.name.endswith(".json")
)
FAMILIES = {
    "coulomb": {"measured", "charges", "dipoles"},
    "listed_pairs": {"block", "num_warps", "num_stages"},
    "lattice": set(LatticeLaunch._fields),
    "norm_network": {"rows", "in", "out", "num_warps", "num_stages", "precision"},
    "mesh": {"atoms", "gather_atoms", "spread_warps", "num_warps", "num_stages", "precision"},
    "pairs": {"block", "sources", "num_warps", "num_stages", "high_sources", "high_warps"},
    "charge_solve": {"tile", "num_warps", "large_from", "large_tile", "large_warps", "num_stages"},
    "charge_solve_costs": {
        *("measured", "always", "factorised", "element_bytes", "processors", "warps_at_once", "launch"),
        *(
            "one_launches",
            "one_iterations",
            "tile",
            "step",
            "byte",
            "cube",
            "many_launches",
            "iteration_launches",
        ),
        *("many_iterations", "waves_per_atom", "pair"),
    },
    "channelwise": {
        *("forward", "backward", "forward_components", "backward_components"),
        *("num_warps", "num_stages"),
    },
    "radial": {
        *("fused", "channels", "edges", "hidden", "components", "precision"),
        *("num_warps", "num_stages"),
    },
    "radial_edges": {
        *("channels", "edges", "hidden", "components", "precision"),
        *("num_warps", "num_stages"),
    },
    "radial_matrix": {
        *("channels", "edges", "hidden", "paths", "chunk", "chunks", "precision"),
        *("num_warps", "num_stages"),
    },
    "symmetric_contraction": {"channels", "rows", "terms", "terms_inputs", "num_warps", "num_stages"},
    "indexed_linear": {"rows", "in", "out", "sum_rows", "num_warps", "num_stages", "precision"},
}

# families of what things cost
COSTS = ("coulomb", "charge_solve_costs")


def read(name):
    return json.loads(resources.files("scfmlip_kernels.tuned").joinpath(name).read_text())


@pytest.fixture
def no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_other_names_are_refused():
    with (
        pytest.raises(ValueError, match="backend must be 'auto', 'cpu' or 'triton', got 'cuda'"),
        backend("cuda"),
    ):
        pass


@pytest.mark.skipif(not interpreting(), reason="needs the interpreter")
def test_blocks_nest_and_end():
    x = torch.zeros(1)
    with backend("cpu"):
        assert not runs_triton(x)
        with backend("auto"):
            assert runs_triton(x)
            with contextlib.suppress(KeyError), backend("cpu"):
                assert not runs_triton(x)
                raise KeyError
            assert runs_triton(x)
        assert not runs_triton(x)


def test_without_the_interpreter(no_interpreter):
    x = torch.zeros(1)
    for name in ("auto", "cpu"):
        with backend(name):
            assert not runs_triton(x)
    with backend("triton"), pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
        runs_triton(x)


def test_grids_planned_without_the_interpreter_hold_no_tiles(no_interpreter, generator):
    problem = lattice_problem([3, 2], 1, generator)
    assert len(problem.grid.row_tiles) == len(problem.grid.point_tiles) == len(problem.grid.atom_tiles) == 0


@pytest.mark.interpreter
def test_both_paths_agree_on_one_grid(generator, device):
    """A grid serves both paths: choosing one is the operator's business alone."""
    problem = lattice_problem([5, 3], 1, generator, device)
    kernel = structure_factor(problem.frac, problem.moments, problem.grid).cpu()
    here = problem.to("cpu")
    with backend("cpu"):
        path = structure_factor(here.frac, here.moments, here.grid._replace(weight=here.grid.weight.cpu()))
    assert_close(kernel[problem.inside], path[problem.inside])


@pytest.mark.parametrize("name", TABLES)
def test_tables_hold_known_families(name):
    table = read(name)
    assert set(table) <= set(FAMILIES)
    for family, entries in table.items():
        assert set(entries) <= {"float32", "float64"}
        for parameters in entries.values():
            assert set(parameters) == FAMILIES[family]
    if name == "default.json":
        assert {(f, d) for f in table for d in table[f]} == {
            (f, d) for f in FAMILIES for d in ("float32", "float64")
        }


@pytest.mark.parametrize("name", TABLES)
def test_blocks_are_what_triton_takes(name):
    """Powers of two, and 16 at least where `tl.dot` multiplies."""
    for family, entries in read(name).items():
        for parameters in entries.values() if family not in COSTS else ():
            blocks = [parameters[k] for k in ("rows", "l", "atoms", "block", "sources") if k in parameters]
            assert all(b & (b - 1) == 0 for b in blocks)
            assert family != "lattice" or min(blocks) >= 16
            assert parameters["num_warps"] in (1, 2, 4, 8, 16)
            assert parameters.get("precision", "ieee") in ("ieee", "tf32x3")


@pytest.mark.parametrize("name", TABLES)
def test_costs_of_charge_solves(name):
    """Numbers above 0; only a device's own table says that they were measured on it."""
    for entry in read(name).get("charge_solve_costs", {}).values():
        assert entry["measured"] == (name != "default.json")
        assert all(cost > 0 for key, cost in entry.items() if key != "measured")


@pytest.mark.parametrize("name", TABLES)
def test_costs_of_coulomb_sums(name):
    """Numbers in ns; only a device's own table says that they were measured on it."""
    names = {"direct", "wave", "table", "mesh", "point", "near", "pair", "open"}
    for entry in read(name).get("coulomb", {}).values():
        assert entry["measured"] == (name != "default.json")
        for costs in (entry["charges"], entry["dipoles"]):
            assert set(costs) == names
            assert all(cost >= 0 for cost in costs.values())


def test_both_dtypes_share_what_work_tables_are_cut_by(monkeypatch):
    """Grids are cut once, by float32's blocks, and serve both dtypes whatever float64's entry says."""
    default = read("default.json")
    default["lattice"]["float64"].update(rows=32, l=64, atoms=128, num_warps=2)
    monkeypatch.setattr(submodule("tuned"), "_table", lambda _: default)
    cpu = torch.device("cpu")
    launch, other = (lattice_launch(cpu, dtype) for dtype in (torch.float32, torch.float64))
    assert (other.rows, other.l, other.atoms) == (launch.rows, launch.l, launch.atoms)
    assert other.num_warps == 2


def test_a_device_overrides_the_default(monkeypatch, tmp_path):
    """One family, one dtype: the rest stays; another GPU's file does nothing."""
    module = submodule("tuned")
    default = read("default.json")
    (tmp_path / "default.json").write_text(json.dumps(default))
    mine = {"lattice": {"float32": {**default["lattice"]["float32"], "num_warps": 4}}}
    (tmp_path / "h200.json").write_text(json.dumps(mine))
    (tmp_path / "a100.json").write_text(json.dumps({"pairs": {"float32": {}}}))
    monkeypatch.setattr(module.resources, "files", lambda _: tmp_path)
    _table.cache_clear()
    try:
        table = _table("nvidia h200")
        assert table["lattice"]["float32"]["num_warps"] == 4
        assert table["lattice"]["float64"] == default["lattice"]["float64"]
        assert table["pairs"] == default["pairs"]
        assert _table("interpreter") == default
    finally:
        _table.cache_clear()


def test_parameters_on_a_cpu():
    x = torch.zeros(1)
    for dtype in (torch.float32, torch.float64):
        launch = lattice_launch(x.device, dtype)
        assert launch.num_warps == tuned("lattice", x.device, dtype)["num_warps"]
    assert compiler_options(8, 1, x) == {"num_warps": 8, "num_stages": 1}
    assert splits_for(1, 10**9, 1, x) == 1


def test_public_names():
    assert sorted(scfmlip_kernels.__all__) == scfmlip_kernels.__all__
    assert all(callable(getattr(scfmlip_kernels, name)) for name in scfmlip_kernels.__all__)
