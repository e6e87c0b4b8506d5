"""
Fixed points and minima as problems: the unknowns and the equations between them.

Solvers work on one flat float64 vector, in which every number belongs to a system. The user's functions take
states of any shape, in their own dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..segments import Segments
from .options import check_returned
from .solvers.gmres import Map
from .solvers.recursion import GivenSum
from .totals import GivenTotals

Update = Callable[..., Tensor]


@dataclass
class FixedPointProblem:
    """
    ``F(s) = s``; or with potentials mu ``F(s, mu) = s`` and, if totals are given, ``sum_i s_i0 = Q``.

    The unknowns are ``x = (s, mu)``, flattened; mu is included if totals are given.

    Attributes:
        update: F.
        like: ``[n_rows, ...]`` any state, for its shape and dtype.
        rows: The system of each row.
        groups: Which numbers of a row add up to the totals; None without totals.
        totals: ``[n_systems]`` or ``[n_systems, n_columns]`` e; None without totals.
        potential: V, given, or first guesses in the shape of the totals; None without potentials.
    """

    update: Update
    like: Tensor
    rows: Segments
    groups: GivenTotals | None
    totals: Tensor | None
    potential: Tensor | None
    # 1 for unknowns of the state and 0 for others; None if all are of the state
    is_state: Tensor | None = field(init=False, default=None)
    batch: Segments = field(init=False)
    first: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.like = self.like.detach()
        self.n_charges = self.like.numel()
        batch = self.rows.repeated(math.prod(self.like.shape[1:]))
        self.first = self.like.flatten().double()
        if self.groups is not None and self.potential is not None:
            self.is_state = torch.cat(
                (torch.ones_like(self.first), self.first.new_zeros(self.potential.numel()))
            )
            batch = batch.with_unknowns(len(self.groups.columns))
            self.first = torch.cat((self.first, self.potential.detach().flatten().double()))
        self.batch = batch

    @property
    def given(self) -> tuple[Tensor, ...]:
        """Arguments of the equations besides the user's parameters: totals, or given potentials."""
        given = self.potential if self.totals is None else self.totals
        return () if given is None else (given,)

    def new_state(
        self, s: Tensor, potential: Tensor | None, parameters: Sequence[Tensor], update: Update | None = None
    ) -> Tensor:
        """``F(s, mu)``, in the shape of a state."""
        update = self.update if update is None else update
        # pass a copy: an update that writes into its state would make every state a solution
        s = s.clone()
        new = update(s, *parameters) if potential is None else update(s, potential, *parameters)
        check_returned("update (and approximation)", new, self.like.shape, self.like)
        return new

    def residual(self, x: Tensor, *arguments: Tensor, update: Update | None = None) -> Tensor:
        """``[n]`` residual of the equations at x; ``arguments`` are `given` and the parameters."""
        s = x[: self.n_charges].view(self.like.shape)
        given, parameters = (None, arguments) if not self.given else (arguments[0], arguments[1:])
        if self.groups is None:
            return (self.new_state(s, given, parameters, update) - s).flatten()
        assert given is not None
        # a number of the system in and one out, both with whole gradients
        mu = self.rows.sum_gradient(x[self.n_charges :].view(given.shape))
        new = self.new_state(s, mu, parameters, update)
        missing = self.rows.share_gradient(self.groups.missing(s, given, alike=True))
        return torch.cat(((new - s).flatten(), missing.flatten()))

    def feasible(self, x: Tensor, arguments: Sequence[Tensor]) -> Tensor:
        """``[n]`` the nearest unknowns that satisfy the totals in ``arguments``."""
        if self.groups is None:
            return x
        charges, potentials = x.split((self.n_charges, len(x) - self.n_charges))
        return torch.cat((self.groups.feasible(charges, arguments[0].double()), potentials))

    def missing(self, x: Tensor, mu: Tensor, arguments: Sequence[Tensor]) -> Tensor:
        """The totals minus the charges that F gives at the state of x and the potentials ``mu``; float64."""
        assert self.groups is not None
        totals, *parameters = arguments
        s, dtype = x[: self.n_charges], self.like.dtype
        with torch.no_grad():
            new = self.new_state(
                s.to(dtype).view(self.like.shape), mu.view(totals.shape).to(dtype), parameters
            )
        return self.groups.missing(new, totals).flatten().double()


@dataclass
class FunctionalProblem:
    """
    ``min E(s)``, with ``sum_i s_i0 = Q`` if totals are given.

    The unknowns x are flat. They stand for the state that is their projection on directions that conserve the
    totals, plus the totals spread evenly.

    Attributes:
        functional: E.
        like: ``[n_rows, ...]`` any state, for its shape and dtype.
        rows: The system of each row.
        groups: Which numbers of a row add up to the totals; None without totals.
        precondition: Approximate inverse of the Hessian, on states; None for no preconditioner.
    """

    functional: Callable[..., Tensor]
    like: Tensor
    rows: Segments
    groups: GivenTotals | None
    precondition: Callable[[Tensor], Tensor] | None
    batch: Segments = field(init=False)

    def __post_init__(self) -> None:
        self.like = self.like.detach()
        self.batch = self.rows.repeated(math.prod(self.like.shape[1:]))

    def energies(self, s: Tensor, *parameters: Tensor) -> Tensor:
        """
        Energies ``[n_systems]``, eV.

        Raises:
            TypeError, ValueError: for a functional that returns something else.
        """
        values = self.functional(s, *parameters)
        if not isinstance(values, Tensor) or not values.is_floating_point():
            got = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"functional must return a tensor of energies, got {got}")
        if values.shape != (self.rows.n_segments,):
            raise ValueError(
                f"functional must return energies [{self.rows.n_segments}], one per system, got "
                f"{list(values.shape)}"
            )
        return values

    def whole_energies(self, s: Tensor, *parameters: Tensor) -> Tensor:
        """The same, of which processes may have unequal parts of a gradient."""
        return self.rows.equal_parts(self.energies(s, *parameters))[0]

    def project(self, x: Tensor) -> Tensor:
        """``[n]``: the part that conserves the totals."""
        return x if self.groups is None else self.groups.project(x)

    @functools.cached_property
    def given(self) -> GivenSum | None:
        """The constraint of one charge for each system, as recursions know it; None if it is another."""
        if self.groups is None or len(self.groups.columns) > 1:
            return None
        count = self.groups.counts[:, 0]
        ones = self.groups.even(torch.ones_like(count) * count)
        # as if vectors were projected before and behind the preconditioner
        return GivenSum(ones, count, ones, count)

    def place(self, x: Tensor, totals: Tensor) -> Tensor:
        """The state that the unknowns stand for."""
        return self.inside(self.project(x), totals)

    def inside(self, x: Tensor, totals: Tensor) -> Tensor:
        """The same of unknowns that conserve the totals: what is projected need not be projected again."""
        if self.groups is not None:
            x = x + self.groups.even(totals).to(x.dtype)
        return x.view(self.like.shape)

    def slope(self, values: Tensor, s: Tensor, create: bool) -> Tensor:
        """Derivative of the energies in the state; ``create`` keeps it differentiable."""
        if not values.requires_grad and self.like.numel():
            raise ValueError(
                "functional must be differentiable in the state: build its energies from the state by torch "
                "operations, without detach, item, numpy or torch.no_grad"
            )
        # differentiable without rows, too, and by all processes that share them together
        total = self.rows.share_gradient(values).sum() + 0 * s.sum()
        return torch.autograd.grad(total, s, create_graph=create)[0]

    def gradient(self, s: Tensor, parameters: Sequence[Tensor], create: bool) -> Tensor:
        """dE/ds in the shape of a state, with or without a graph."""
        with torch.enable_grad():
            at = s if s.requires_grad else s.detach().requires_grad_()
            return self.slope(self.energies(at, *parameters), at, create)

    def residual(self, x: Tensor, totals: Tensor, *parameters: Tensor) -> Tensor:
        """The residual, symmetric in x: the projected gradient along the constraint, x itself across it."""
        projected = self.project(x)
        gradient = self.gradient(self.inside(projected, totals), parameters, True)
        return self.project(gradient.flatten()) + (x - projected)

    def value(self, x: Tensor, totals: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """``[n_systems]`` float64 energies, eV, at unknowns that conserve the totals, without a graph."""
        with torch.no_grad():
            return self.energies(self.inside(x.to(self.like.dtype), totals), *parameters).double()

    def expand(
        self, x: Tensor, totals: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Map]:
        """
        The energy to second order around x, which conserves the totals.

        Returns:
            Energies ``[n_systems]``, projected gradient ``[n]``, norm of the full gradient ``[n_systems]``,
            and a function for products of the Hessian with vectors; all float64. The Hessian is projected
            where there is no `given`.
        """
        dtype, shape = self.like.dtype, self.like.shape
        with torch.enable_grad():
            s = self.inside(x.to(dtype), totals).detach().requires_grad_()
            values = self.energies(s, *parameters)
            slope = self.slope(values, s, True)

        def apply(v: Tensor) -> Tensor:
            direction = self._beside_given(v).to(dtype).view(shape)
            if not slope.requires_grad:  # linear in the state
                return torch.zeros_like(v)
            (product,) = torch.autograd.grad(slope, s, direction, retain_graph=True, materialize_grads=True)
            return self._beside_given(product.flatten().double())

        whole, given = slope.detach().flatten().double(), self.given
        if given is None:
            return values.detach().double(), self.project(whole), self.batch.norm(whole), apply
        # in one sum, because each costs time over several processes
        total, square = self.batch.dot(torch.stack((given.ones, whole)), torch.stack((whole, whole)))
        inside = whole - self.batch.expand(total / given.count) * given.ones
        return values.detach().double(), inside, square.sqrt(), apply

    def _beside_given(self, v: Tensor) -> Tensor:
        """The projection where recursions do not make it with `given`, whose vectors are projected."""
        return v if self.given is not None else self.project(v)

    def preconditioned(self, v: Tensor) -> Tensor:
        """``[n]`` float64: the preconditioner, projected as the Hessian is, see `expand`."""
        if self.precondition is None:
            return v
        out = self.precondition(self._beside_given(v).to(self.like.dtype).view(self.like.shape))
        check_returned("precondition", out, self.like.shape, self.like)
        return self._beside_given(out.flatten().double())
