"""Losses as named, weighted terms, and the error of each label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

LossKind = Literal["mse", "huber", "l1"]


@dataclasses.dataclass(frozen=True)
class Term:
    """
    One label: the output that predicts it, and how its error counts.

    Attributes:
        output: Key of the model's output.
        label: Key of the batch; ``{label}_weight [n_systems]`` holds its weight, 0 if there is no label.
        per: Whether the first axis runs over each "system" or "atom".
        unit: Unit of the error.
        per_atom: Whether to divide the error by the number of atoms.
        option: The data option that sets the label's key.

    Example:
        >>> from scfmlip.training import TERMS
        >>> term = TERMS["energy"]
        >>> term.output, term.option, term.unit
        ('interaction_energy', 'energy_key', 'eV/atom')
    """

    output: str
    label: str
    per: Literal["system", "atom"]
    unit: str
    option: str
    per_atom: bool = False


TERMS: dict[str, Term] = {
    # energies without atomic energies, because float32 could not resolve the total
    "energy": Term("interaction_energy", "energy", "system", "eV/atom", "energy_key", per_atom=True),
    "forces": Term("forces", "forces", "atom", "eV/A", "forces_key"),
    "stress": Term("stress", "stress", "system", "eV/A^3", "stress_key"),
    "charges": Term("charges", "charges", "atom", "e", "charges_key"),
    "multipoles": Term("density_coefficients", "density_coefficients", "atom", "e, e A", "multipoles_key"),
    "total_charge": Term("total_charge", "total_charge", "system", "e", "total_charge_key"),
    "total_charge_per_atom": Term(
        "total_charge", "total_charge", "system", "e/atom", "total_charge_key", per_atom=True
    ),
    "dipole": Term("dipole", "dipole", "system", "e A", "dipole_key"),
    "dipole_per_atom": Term("dipole", "dipole", "system", "e A/atom", "dipole_key", per_atom=True),
    "potential": Term("electrostatic_potential", "potential", "atom", "V", "potential_key"),
    "fermi_level": Term("fermi_level", "fermi_level", "system", "V", "fermi_key"),
}


# terms without a label: the output that a softplus(x - 1) of this sharpness keeps below 1
PENALTIES = {"scf_stability": "scf_amplification"}
_SHARPNESS = 10.0

# one term per label: terms that differ only in their unit are redundant
LABELS = tuple(n for n in TERMS if not n.endswith("_per_atom"))


def _reference(term: Term, batch: Mapping[str, Tensor], predicted: Tensor) -> Tensor:
    """The label in the shape of ``predicted``; a density with charges only is compared with the charges."""
    label = batch[term.label]
    if term.output == "density_coefficients":
        label = label[:, : predicted.shape[1]]
    return label.reshape(predicted.shape)


def _errors(
    term: Term, out: Mapping[str, Tensor | None], batch: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Error and label weight of a term, ``[n, components]`` each; None if it is not predicted."""
    predicted = out.get(term.output)
    if predicted is None:
        return None
    weight = batch[f"{term.label}_weight"]
    if term.per == "atom":
        weight = weight[batch["batch"]]
    size = weight.shape[0]
    weight = weight.reshape(size, -1)
    error = (predicted - _reference(term, batch, predicted)).reshape(size, -1)
    if term.per_atom:
        error = error / (batch["ptr"][1:] - batch["ptr"][:-1])[:, None].to(error.dtype)
    weight = weight.to(error.dtype).expand_as(error)
    # without a label the error has no meaning and may be NaN; its gradient must be zero
    return torch.where(weight > 0, error, 0), weight


def loss(
    out: Mapping[str, Tensor | None],
    batch: Mapping[str, Tensor],
    weights: Mapping[str, float],
    kind: LossKind = "mse",
    delta: float = 0.01,
    n_systems: float | None = None,
    n_atoms: float | None = None,
) -> Tensor:
    """
    The weighted loss of a batch: sum over terms of ``w mean(w_frame w_label l(error))``.

    As in mace-torch, the mean runs over all systems, atoms and components, labelled or not. The expected
    gradient of a batch is then that of the whole set, however the labels are distributed.

    Args:
        out: Output of the model.
        batch: Input of the model, with labels and their weights.
        weights: Weights of the terms in `TERMS` and `PENALTIES`.
        kind: "mse" is quadratic; "huber" is quadratic up to ``delta`` and linear beyond; "l1" is the absolute
            value, or the norm of vectors and tensors (forces, stress, dipole).
        delta: See ``kind``.
        n_systems: Divisor of sums over systems; the batch's number of systems if None. Processes that share a
            batch pass the total number.
        n_atoms: Likewise for sums over atoms.

    Returns:
        A scalar in the dtype of the outputs.

    Raises:
        ValueError: for a weighted term that the model does not predict.

    Example:
        >>> import torch
        >>> from scfmlip.training import loss
        >>> one = torch.ones(1)
        >>> batch = {"ptr": torch.tensor([0, 2]), "batch": torch.tensor([0, 0]), "weight": one}
        >>> batch |= {"energy": torch.tensor([-10.0]), "energy_weight": one}
        >>> loss({"interaction_energy": torch.tensor([-9.8])}, batch, {"energy": 1.0})  # (0.2 / 2 atoms)^2
        tensor(0.0100)
    """
    total: Tensor | None = None
    for name, weight in weights.items():
        if weight == 0:
            continue
        output = PENALTIES[name] if name in PENALTIES else TERMS[name].output
        predicted = out.get(output)
        if predicted is None:
            raise ValueError(f"loss term {name!r} has weight {weight}, but this model predicts no {output}")
        frame = batch["weight"].to(predicted.dtype)
        if name in PENALTIES:
            excess = F.softplus(predicted - 1, beta=_SHARPNESS)
            part = weight * (frame * excess).sum() / (len(excess) if n_systems is None else n_systems)
            total = part if total is None else total + part
            continue
        term = TERMS[name]
        found = _errors(term, out, batch)
        assert found is not None
        error, label_weight = found
        label_weight = label_weight * (frame[batch["batch"]] if term.per == "atom" else frame)[:, None]
        count = n_atoms if term.per == "atom" else n_systems
        count = error.shape[0] if count is None else count
        if kind == "mse":
            summed = (label_weight * error.square()).sum() / error.shape[1]
        elif kind == "huber":
            summed = (label_weight * F.huber_loss(error, torch.zeros_like(error), "none", delta)).sum()
            summed = summed / error.shape[1]
        else:
            # a norm has no derivative at 0
            length = (label_weight * error).square().sum(1)
            positive = length > 0
            summed = torch.where(positive, length, 1).sqrt().where(positive, 0).sum()
        part = weight * summed / count
        total = part if total is None else total + part
    if total is None:
        raise ValueError("every loss weight is 0")
    return total


def labelled_pairs(
    out: Mapping[str, Tensor | None], batch: Mapping[str, Tensor]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Flat predictions and references of a batch by label; only components with a label."""
    found = {}
    for name in LABELS:
        term = TERMS[name]
        result = _errors(term, out, batch)
        if result is None or not bool((result[1] > 0).any()):
            continue
        error, weight = result
        predicted = out[term.output]
        assert predicted is not None
        reference = _reference(term, batch, predicted).reshape(error.shape)
        if term.per_atom:
            reference = reference / (batch["ptr"][1:] - batch["ptr"][:-1])[:, None]
        mask = weight > 0
        values = reference[mask].double().cpu().numpy()
        found[name] = (values + error.detach()[mask].double().cpu().numpy(), values)
    return found


class Errors:
    """
    Root mean square and mean absolute errors of every label, accumulated over batches and processes.

    Components without a label do not count; weights only mark which components have one.

    Example:
        >>> import torch
        >>> from scfmlip.training import Errors
        >>> one, errors = torch.ones(1), Errors()
        >>> batch = {"ptr": torch.tensor([0, 2]), "batch": torch.tensor([0, 0]), "weight": one}
        >>> batch |= {"energy": torch.tensor([-10.0]), "energy_weight": one}
        >>> errors.add({"interaction_energy": torch.tensor([-9.8])}, batch)
        >>> {name: round(value, 4) for name, value in errors.result().items()}  # eV per atom
        {'energy_rmse': 0.1, 'energy_mae': 0.1}
    """

    def __init__(self) -> None:
        # count, sum of squares, sum of absolute values
        self.sums = torch.zeros(len(LABELS), 3, dtype=torch.float64)

    def add(self, out: Mapping[str, Tensor | None], batch: Mapping[str, Tensor]) -> None:
        """Add a batch."""
        used = batch["weight"] > 0
        for row, name in zip(self.sums, LABELS, strict=True):
            term = TERMS[name]
            found = _errors(term, out, batch)
            if found is None:
                continue
            error, weight = found
            mask = (weight > 0) & (used[batch["batch"]] if term.per == "atom" else used)[:, None]
            error = error.detach()[mask].double()
            row += torch.stack(
                [error.new_tensor(error.numel()), error.square().sum(), error.abs().sum()]
            ).cpu()

    def result(self) -> dict[str, float]:
        """``{name}_rmse`` and ``{name}_mae`` of every label found, in the units of `TERMS`."""
        found = {}
        for (count, square, absolute), name in zip(self.sums.tolist(), LABELS, strict=True):
            if count:
                found[f"{name}_rmse"] = (square / count) ** 0.5
                found[f"{name}_mae"] = absolute / count
        return found
