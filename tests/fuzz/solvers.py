"""Random calls of the solvers, checked against dense linear algebra and the equations themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from electrostatics.brute_force import alpha_of, coulomb_matrix

import scfmlip
from fuzz.coulomb import HOSTILE, in_cell, pair_of, random_systems, stack
from fuzz.outcomes import check
from scfmlip.scf import minimize_functional

F64 = torch.float64


def dense_charges(
    matrix: torch.Tensor, chi: torch.Tensor, charge_rows: torch.Tensor, total: float | None, potential: float
) -> torch.Tensor:
    """The minimum of ``chi.s + 1/2 s.A s`` at a total charge, or at a potential of the charges."""
    n = len(chi)
    if total is None:
        return torch.linalg.solve(matrix, potential * charge_rows - chi)
    bordered = torch.zeros(n + 1, n + 1, dtype=F64)
    bordered[:n, :n], bordered[n, :n], bordered[:n, n] = matrix, charge_rows, charge_rows
    return torch.linalg.solve(bordered, torch.cat((-chi, torch.tensor([total], dtype=F64))))[:n]


def equilibration(rng: np.random.Generator) -> str:
    """Charges of random systems and constraints equal those of whole matrices of pairs."""
    systems = [s for s in random_systems(rng) if len(s["positions"])]
    if not systems:
        return "nothing"
    l_max, sigma = int(rng.integers(2)), float(rng.uniform(0.9, 1.5))
    given = stack(systems, F64)
    n, dim = len(given["positions"]), 4 if l_max else 1
    given.pop("rows")
    chi = torch.tensor(rng.normal(size=(n, dim)) * 3.0)
    hardness = torch.tensor(rng.uniform(5.0, 20.0, (n, dim)))
    at_potential = rng.random() < 0.3 and all(sum(s["pbc"]) != 2 for s in systems)
    totals = None if at_potential else torch.tensor(rng.normal(size=len(systems)))
    level = torch.tensor(rng.normal(size=len(systems)))
    method = ["auto", "dense", "cg"][rng.integers(3)]
    geometry = scfmlip.Coulomb(l_max=l_max, sigma=sigma, tolerance=1e-11).prepare(**given)
    solution = scfmlip.charge_equilibration(
        geometry,
        chi if l_max else chi[:, 0],
        hardness if l_max else hardness[:, 0],
        totals,
        chemical_potential=level if at_potential else None,
        method=method,
        tolerance=1e-11,
    )
    for i, system in enumerate(systems):
        mine = given["batch_idx"] == i
        size = int(mine.sum())
        k = coulomb_matrix(pair_of(system, alpha_of(sigma)), in_cell(system))[:, :dim, :, :dim]
        matrix = k.reshape(size * dim, size * dim) + torch.diag(hardness[mine].flatten())
        charges = torch.zeros(size, dim, dtype=F64)
        charges[:, 0] = 1.0
        total = None if totals is None else float(totals[i])
        want = dense_charges(matrix, chi[mine].flatten(), charges.flatten(), total, float(level[i]))
        off = float((solution.state[mine].flatten() - want).abs().max())
        check(
            off < 1e-7 * max(1.0, float(want.abs().max())),
            f"charges off by {off:.2e}, {method}, {system['pbc']}",
        )
    return f"right, {method}, {'level' if at_potential else 'charge'}"


def spoilt_equilibration(rng: np.random.Generator) -> str:
    """One argument is spoilt; what is accepted obeys the equations."""
    systems = [s for s in random_systems(rng) if len(s["positions"])] or random_systems(
        np.random.default_rng(3)
    )
    given = stack(systems, F64)
    n = len(given["positions"])
    given.pop("rows")
    geometry = scfmlip.Coulomb(l_max=0, sigma=1.2).prepare(**given)
    arguments: dict[str, Any] = {
        "electronegativity": torch.tensor(rng.normal(size=n)),
        "hardness": torch.tensor(rng.uniform(5.0, 20.0, n)),
        "total_charge": 0.0,
    }
    names = [*arguments, "chemical_potential", "fragments", "width_index", "widths", "pairs", "initial"]
    names += ["method", "preconditioner", "tolerance", "max_iterations", "on_failure"]
    name = names[rng.integers(len(names))]
    bad = HOSTILE[rng.integers(len(HOSTILE))]
    tensors = [torch.zeros(n), torch.zeros(n + 1, dtype=F64), torch.full((n,), math.nan, dtype=F64)]
    tensors += [
        torch.zeros(0),
        -torch.ones(n, dtype=F64),
        torch.zeros(n, 3, dtype=F64),
        torch.zeros(n, dtype=torch.int64),
    ]
    arguments[name] = tensors[rng.integers(len(tensors))] if rng.random() < 0.5 else bad
    solution = scfmlip.charge_equilibration(geometry, **arguments)
    check(torch.isfinite(solution.charges).all(), f"{name}={arguments[name]!r}: {solution.charges.tolist()}")
    potential = geometry.potential(solution.state, self_interaction=True)[:, 0]
    hardness, chi = arguments["hardness"], arguments["electronegativity"]
    if name in ("hardness", "electronegativity", "widths", "fragments", "width_index", "pairs"):
        return "accepted"
    index = given["batch_idx"]
    slope = chi + hardness * solution.charges + potential
    if arguments["total_charge"] is not None:
        total = torch.zeros(len(systems), dtype=F64).index_add(0, index, solution.charges)
        wanted = torch.as_tensor(arguments["total_charge"], dtype=F64)
        check((total - wanted).abs().max() < 1e-6, f"{name}={arguments[name]!r}: totals {total.tolist()}")
    level = torch.as_tensor(solution.chemical_potential, dtype=F64).expand(len(systems))[index]
    loose = name in ("tolerance", "max_iterations", "on_failure")
    off = float((slope - level).abs().max())
    check(
        # of a charge of 1e300 e the slopes are rounded to 1e286
        loose or off < 1e-4 * max(1.0, float(chi.abs().max()), float(level.abs().max())),
        f"{name}={arguments[name]!r}: slope {off:.1e}",
    )
    return "accepted"


def random_map(rng: np.random.Generator, n: int, dtype: torch.dtype):
    """A map of ``[n, 1]`` states and its name; charges may fall or rise with the potential, or not answer."""
    matrix = torch.tensor(
        rng.normal(size=(n, n)) * rng.choice([0.05, 0.2, 0.8, 3.0]) / math.sqrt(n), dtype=dtype
    )
    shift = torch.tensor(rng.normal(size=(n, 1)) * rng.choice([0.0, 1.0, 100.0]), dtype=dtype)
    answer = float(rng.choice([0.0, 1e-3, 1.0, -1.0]))
    kinds = {
        "affine": lambda s, mu: matrix @ s + shift + answer * mu,
        "saturating": lambda s, mu: torch.tanh(matrix @ s + shift + answer * mu),
        "steep": lambda s, mu: torch.tanh(50 * (matrix @ s + shift + answer * mu)),
        "weak": lambda s, mu: matrix @ s + shift + 1e-3 * torch.tanh(answer * mu),
        "steps": lambda s, mu: torch.sign(matrix @ s + shift + answer * mu),
        "plus one": lambda s, mu: s + 1 + answer * mu,
        "quadratic": lambda s, mu: (matrix @ s) ** 2 + shift + answer * mu,
        "not a number": lambda s, mu: torch.sqrt(matrix @ s) + mu,
    }
    name = list(kinds)[rng.integers(len(kinds))]
    return name, kinds[name]


def fixed_points(rng: np.random.Generator) -> str:
    """A solve that does not raise has found a state that maps to itself and has the right charge."""
    n, dtype = int(rng.integers(1, 6)), torch.float32 if rng.random() < 0.5 else F64
    name, update = random_map(rng, n, dtype)
    start = torch.tensor(rng.normal(size=(n, 1)) * rng.choice([0.0, 1.0, 1e3, 1e6]), dtype=dtype)
    tolerance = float(rng.choice([0.0, 1e-12, 1e-6, 1e-3, 0.1]))
    options: dict[str, Any] = {
        "tolerance": tolerance,
        "solver": ["auto", "anderson", "newton"][rng.integers(3)],
    }
    kind = ["charge", "potential", "none"][rng.integers(3)]
    total = float(rng.normal() * rng.choice([0.1, 1.0, 10.0]))
    if kind == "charge":
        options["total_charge"] = total
    elif kind == "potential":
        options["chemical_potential"] = float(rng.normal())
    zero = torch.zeros((), dtype=dtype)
    function = update if kind != "none" else (lambda s: update(s, zero))
    try:
        solution = scfmlip.fixed_point(function, start, **options)
    except scfmlip.ConvergenceError:
        return f"no solution found, {kind}"
    state = solution.state
    mu = zero if solution.chemical_potential is None else solution.chemical_potential
    image = update(state.double(), mu.double()) if name == "plus one" else update(state, mu)
    size = max(1.0, float(state.abs().max()), float(image.abs().max()))
    room = max(2 * tolerance, 2e-4 if dtype == torch.float32 else 1e-9) * size * math.sqrt(n)
    off = float((image - state).abs().max())
    check(off <= room, f"{name}, {dtype}, {options}: F(s) - s is {off:.2e} of {size:.2e}")
    if kind == "charge":
        off = abs(float(state.double().sum()) - total)
        check(off <= room, f"{name}, {dtype}, {options}: the charge is off by {off:.2e}, {size:.2e}")
    return f"right, {kind}"


def spoilt_fixed_points(rng: np.random.Generator) -> str:
    """States of any shape, options of any kind."""
    shapes = [(3, 1), (3,), (), (0, 1), (3, 2, 2), (1,)]
    start: Any = torch.tensor(rng.normal(size=shapes[rng.integers(len(shapes))]))
    returns = [
        lambda s, *_: 0.5 * s + 0.1,
        lambda s, *_: s[:1],
        lambda s, *_: None,
        lambda s, *_: s.float(),
        lambda s, *_: s * math.nan,
        lambda s, *_: 3.0,
        lambda s, *_: s.tolist(),
    ]
    update = returns[0] if rng.random() < 0.6 else returns[rng.integers(len(returns))]
    options: dict[str, Any] = {}
    names = ["parameters", "batch_idx", "n_systems", "total_charge", "chemical_potential", "charge_columns"]
    names += ["solver", "tolerance", "max_iterations", "on_failure", "state"]
    name = names[rng.integers(len(names))]
    values = [*HOSTILE, torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 0]), (5,), -3]
    bad = values[rng.integers(len(values))]
    if name == "state":
        start = bad
    else:
        options[name] = bad
    solution = scfmlip.fixed_point(update, start, **options)
    check(torch.isfinite(solution.state).all(), f"{name}={bad!r}: {solution.state.tolist()}")
    if name not in ("tolerance", "max_iterations", "on_failure", "total_charge") and solution.state.numel():
        off = float((solution.state - 0.2).abs().max())
        check(update is not returns[0] or off < 1e-4, f"{name}={bad!r}: {solution.state.tolist()} for 0.2")
    return "accepted"


def functionals(rng: np.random.Generator) -> str:
    """A minimum that does not raise has no slope along what may move, and the right charge."""
    n, dtype = int(rng.integers(1, 6)), torch.float32 if rng.random() < 0.4 else F64
    root = torch.tensor(rng.normal(size=(n, n)), dtype=dtype)
    matrix = root @ root.T + 0.3 * torch.eye(n, dtype=dtype)
    if rng.random() < 0.2:
        matrix = matrix - float(rng.uniform(0, 4)) * torch.eye(n, dtype=dtype)
    linear = torch.tensor(rng.normal(size=(n,)) * rng.choice([0.0, 1.0, 30.0]), dtype=dtype)
    quartic = float(rng.choice([0.0, 0.1, 3.0]))

    def functional(s: torch.Tensor) -> torch.Tensor:
        x = s[:, 0]
        return (linear @ x + 0.5 * x @ (matrix @ x) + quartic * (x**4).sum())[None]

    start = torch.tensor(rng.normal(size=(n, 1)) * rng.choice([0.0, 1.0, 1e3]), dtype=dtype)
    total = float(rng.normal()) if rng.random() < 0.5 else None
    tolerance = float(rng.choice([1e-12, 1e-6, 1e-3, 0.1]))
    try:
        solution = minimize_functional(functional, start, total_charge=total, tolerance=tolerance)
    except scfmlip.ConvergenceError:
        return "no minimum found"
    s = solution.state.detach().requires_grad_()
    (slope,) = torch.autograd.grad(functional(s).sum(), s)
    s = s.detach()
    if total is not None:
        off = abs(float(s.double().sum()) - total)
        check(off < 1e-4 * max(1.0, float(s.abs().max())), f"charge off by {off:.2e}")
        slope = slope - slope.mean()
    size = float(linear.norm() + (matrix @ s[:, 0]).norm() + 4 * quartic * (s**3).norm())
    room = max(3 * tolerance, 1e-4 if dtype == torch.float32 else 1e-9) * max(size, 1.0)
    check(
        slope.norm() <= room, f"{dtype}, tolerance {tolerance}: slope {float(slope.norm()):.2e} of {size:.2e}"
    )
    return "right"
