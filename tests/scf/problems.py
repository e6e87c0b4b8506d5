"""Seeded fixed points, easy, hard and without a solution, and what a solution of them has to be."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

F64 = torch.float64
MAPS = {
    "contracts": lambda s, a, b: 0.15 * a @ s + b,
    "expands": lambda s, a, b: 2 * a @ s + b,
    "saturates": lambda s, a, b: torch.tanh(0.3 * a @ s + b),
    "bends": lambda s, a, b: torch.tanh(1.5 * a @ s + b),
    "jumps": lambda s, a, b: 0.5 * torch.sign(0.2 * a @ s + b),
    "shrinks": lambda s, a, b: 0.5 * s,
    "grows": lambda s, a, b: 1.5 * s,
    "constant": lambda s, a, b: b + 0 * s,
    "large": lambda s, a, b: 0.9 * s + 100 * b,
    "none: shifts": lambda s, a, b: s + 1,
    "none: squares": lambda s, a, b: s**2 + 1,
    "none: explodes": lambda s, a, b: torch.exp(s.clamp(max=60)) + 0.1,
}
ANSWERS = {
    "falls": lambda level: -0.7 * level,
    "rises": lambda level: 0.5 * level,
    "saturates": lambda level: -torch.tanh(level),
    "weak": lambda level: -1e-3 * torch.tanh(level),
    "none": lambda level: 0 * level,
}


@dataclass
class Problem:
    """
    Arguments of one call of `fixed_point`.

    Attributes:
        update, state, options: Of the call.
        kind, answer: Names of the map and of its answer to the potential.
        leveled: Whether the update takes a potential.
    """

    update: Any
    state: Tensor
    options: dict[str, Any]
    kind: str
    answer: str
    leveled: bool

    @property
    def hopeless(self) -> bool:
        """Whether no state of any system solves it: neither alone nor with any potential."""
        helps = self.leveled and self.answer != "none"
        return self.kind.startswith("none") and not helps

    def wrong(self, solution) -> list[str]:
        """What is wrong in systems that are said to have converged; from the map alone."""
        s, index, totals = solution.state, self.options["batch_idx"], self.options.get("total_charge")
        single = s.dtype == torch.float32
        extra = (solution.chemical_potential,) if self.leveled else ()
        nothing = tuple(torch.zeros_like(level) for level in extra) if totals is not None else extra
        new, first = self.update(s, *extra), self.update(torch.zeros_like(s), *nothing)
        guess = self.update(self.state, *nothing)
        tolerance = max(self.options["tolerance"], 2e-6 if single else 1e-13)
        found = []
        for i, status in enumerate(solution.status.tolist()):
            if status != 0:
                continue
            mine = index == i
            size, left, image, source = (float(v[mine].double().norm()) for v in (s, new - s, new, first))
            unit = max(int(mine.sum()) * s.shape[1], 1) ** 0.5
            asked = 0.0 if totals is None else abs(float(totals[i]))
            # the first guess is believed, and sets the scale, where no more than 1e-4 e would pass by it
            believed = max(float(guess[mine].double().norm()), unit, asked)
            own = believed if tolerance * believed <= 1e-4 * unit else max(source, unit, asked)
            allowed = 2 * tolerance * min(max(image, unit), own)
            allowed += min((2e-6 if single else 2e-14) * size, (2e-3 if single else 2e-9) * own)
            if totals is not None:
                # rounding of the potential, no more than next to nothing
                level = abs(float(extra[0][i]))
                allowed += min((2e-6 if single else 2e-14) * level, (2e-5 if single else 2e-12) * own)
            if not left <= allowed:
                found.append(f"system {i}: |F(s) - s| is {left:.2e}, allowed are {allowed:.2e}")
            if totals is not None:
                off = abs(float(s[mine, 0].double().sum()) - float(totals[i]))
                if not off <= (5e-6 if single else 1e-12) * (size + asked + 1):
                    found.append(f"system {i}: the charge is wrong by {off:.2e}")
            if self.hopeless and mine.any() and left > 0:
                found.append(f"system {i}: there is no solution")
        return found


def problem(seed: int) -> Problem:
    """One of all kinds: dtypes, batches with empty systems, constraints, starts, tolerances, solvers."""
    g = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[int(torch.randint(len(options), (1,), generator=g))]

    dtype, counts = pick(torch.float32, F64), [pick(1, 2, 3, 5) for _ in range(pick(1, 1, 2, 3))]
    if len(counts) > 1 and pick(True, False, False):
        counts[pick(*range(len(counts)))] = 0
    n_systems, size = len(counts), pick(1, 1, 2)
    index = torch.arange(n_systems).repeat_interleave(torch.tensor(counts))
    n = len(index)
    coupling = torch.randn(n, n, generator=g, dtype=F64) * (index[:, None] == index[None])
    source = torch.randn(n, size, generator=g, dtype=F64)
    coupling, source = coupling.to(dtype), source.to(dtype)
    kind, answer, constraint = pick(*MAPS), pick(*ANSWERS), pick("none", "charge", "charge", "level")

    def update(s, *level):
        new = MAPS[kind](s, coupling, source)
        if not level:
            return new
        return torch.cat((new[:, :1] + ANSWERS[answer](level[0])[index][:, None], new[:, 1:]), 1)

    options: dict[str, Any] = {
        "batch_idx": index,
        "n_systems": n_systems,
        "tolerance": pick(1e-6, 1e-6, 0.1, 0.5, 0.0, 1e-10),
        "solver": pick("auto", "newton", "auto" if constraint == "charge" else "anderson"),
    }
    if constraint == "charge":
        totals = pick(0.0, 1.0, 1.0, 8.0) * torch.randn(n_systems, generator=g, dtype=F64)
        options["total_charge"] = totals.where(torch.tensor(counts) > 0, 0.0).to(dtype)
    elif constraint == "level":
        options["chemical_potential"] = torch.randn(n_systems, generator=g, dtype=F64).to(dtype)
    start = pick(0.0, 1.0, 1.0, 1e-6, 1e3, 1e6, 1e9)
    state = (start * torch.randn(n, size, generator=g, dtype=F64)).to(dtype)
    return Problem(update, state, options, kind, answer, constraint != "none")
