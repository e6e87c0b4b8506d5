"""Numbers of each system that steps along conjugate directions read and write, one row for each."""

from typing import NamedTuple

from torch import Tensor

# values of `status`, the same as in scfmlip.scf.Status
CONVERGED, ITERATIONS, INDEFINITE, NOT_FINITE, STAGNATED = range(5)
# a system without a new smallest residual stops if the best one is below this, or the last one is rounding
STUCK_BELOW = 1e-3


class Progress(NamedTuple):
    """
    How far each system has come: the rows of ``progress [8, n_systems]`` float64.

    Attributes:
        rz: Gradient times preconditioned gradient, of the direction.
        residual: Norm of the gradient relative to ``Scales.scale``.
        converged, rounded: 1 where the residual is small enough, and where it is rounding; else 0.
        best: Smallest residual so far.
        since: Iterations since then.
        status: 0 converged, 1 goes on, 2 indefinite, 3 not finite, 4 stagnated.
        iterations: Steps taken.
    """

    rz: Tensor
    residual: Tensor
    converged: Tensor
    rounded: Tensor
    best: Tensor
    since: Tensor
    status: Tensor
    iterations: Tensor


class Scales(NamedTuple):
    """
    What residuals are compared with: the rows of ``scales [9, n_systems]`` float64.

    Attributes:
        scale: Of the gradient's norm.
        size: A part of the norm of terms that cancel to the gradient; the rest is the slope's norm.
        charges: Their number, 1 at least; only read with a constraint.
        weight: ``1.M 1`` of the preconditioner M; only read with a constraint.
        tolerance: Largest residual.
        rounding: Norm of the gradient that is rounding, relative to the terms that cancel to it.
        excused: Largest residual that passes because it is rounding.
        patience: Iterations without a new smallest residual after which a system may stop.
        flat: Curvature that is none, relative to the square of the direction's norm.
    """

    scale: Tensor
    size: Tensor
    charges: Tensor
    weight: Tensor
    tolerance: Tensor
    rounding: Tensor
    excused: Tensor
    patience: Tensor
    flat: Tensor


class Met(NamedTuple):
    """
    What a move met: the rows of ``met [3, n_systems]`` float64.

    Attributes:
        status: As in `Progress`, of systems without a minimum along the direction too.
        moving: 1 for systems that moved, else 0.
        curvature: ``p.A p`` of the direction p.
    """

    status: Tensor
    moving: Tensor
    curvature: Tensor
