"""What a network of normalised layers computes: its sizes, and where its parameters are in one vector."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..registry import described

ENDS = ("linear", "ones", "tanh_square")


class NormNetwork(NamedTuple):
    """
    A network of hidden layers of one width: a linear map, a normalisation (layer norm), silu.

    Its parameters lie in one vector, hidden layer after hidden layer: matrix ``[n_hidden, n_in]``, bias, gain
    and shift of the normalisation, ``[n_hidden]`` each; then matrix ``[n_out, n_hidden]`` and bias of the
    last layer, unless it ends in ``"ones"``.

    Attributes:
        n_in: Inputs.
        n_hidden: Width of the hidden layers.
        n_layers: Number of hidden layers.
        n_out: Outputs; with ``end="ones"`` ``n_hidden + 1``.
        end: ``"linear"``: a last linear map; ``"tanh_square"``: ``tanh(y^2)`` of it; ``"ones"``: the hidden
            features and a 1, so that a matrix behind them may hold a bias.
        eps: Added to the variance.
        n_skipped: Columns of the first matrix behind those of the inputs, which are not used: what they
            would contribute comes from a table, see `norm_network`.

    Example:
        >>> from scfmlip_kernels import NormNetwork
        >>> NormNetwork(n_in=8, n_hidden=64, n_layers=2, n_out=1).n_parameters
        5057
    """

    n_in: int
    n_hidden: int
    n_layers: int
    n_out: int
    end: str = "linear"
    eps: float = 1e-5
    n_skipped: int = 0

    @classmethod
    def from_json(cls, *fields: object) -> NormNetwork:
        """See `registry`."""
        return cls(*fields)  # type: ignore[arg-type]

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters, in order."""
        n = self.n_hidden
        shapes: list[tuple[int, ...]] = []
        for layer in range(self.n_layers):
            shapes += [(n, n if layer else self.n_in + self.n_skipped), (n,), (n,), (n,)]
        return tuple(shapes) if self.end == "ones" else (*shapes, (self.n_out, n), (self.n_out,))

    @property
    def n_parameters(self) -> int:
        """Length of the vector of parameters."""
        return sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in self.sizes)

    @property
    def n_kept_out(self) -> int:
        """Outputs that are kept before the end, for the derivatives."""
        return self.n_out if self.end == "tanh_square" else 0

    def check(self) -> None:
        """Raise ValueError if the description is inconsistent."""
        if min(self.n_in, self.n_hidden, self.n_layers, self.n_out) < 1 or self.n_skipped < 0:
            raise ValueError(f"NormNetwork: all sizes must be at least 1, got {self}")
        if self.end not in ENDS:
            raise ValueError(f"NormNetwork: end must be one of {', '.join(ENDS)}, got {self.end!r}")
        if self.end == "ones" and self.n_out != self.n_hidden + 1:
            raise ValueError(
                f"NormNetwork: with end='ones' there are {self.n_hidden + 1} outputs, not {self.n_out}"
            )
        if not self.eps > 0:
            raise ValueError(f"NormNetwork: eps must be positive, got {self.eps!r}")


@lru_cache(maxsize=1024)
def network_of(text: str) -> NormNetwork:
    """The network that a text describes."""
    return described(text, NormNetwork)
