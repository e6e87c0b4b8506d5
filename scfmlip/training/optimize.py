"""Optimizer, learning rates, and the module that is distributed over processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from ..scf import ConvergenceError
from .config import OptimizerConfig, ScheduleConfig, TrainConfig
from .losses import LossKind, loss


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """
    Parameters with and without weight decay.

    As in mace-torch, weights that mix features decay (linear maps and tensor products of the interactions,
    all weights of the products). Embeddings, radial networks, readouts and charge rules do not decay.
    """
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        mixes = "products." in name or (
            "interactions." in name and ("linear" in name or "skip_tp" in name) and name.endswith("weight")
        )
        (decayed if mixes else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: torch.nn.Module, options: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """Make the optimizer of a stage."""
    cls = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[options.name]
    betas = cast(tuple[float, float], tuple(options.betas))
    groups = parameter_groups(model, options.weight_decay)
    return cls(groups, lr=lr, betas=betas, amsgrad=options.amsgrad)


class Schedule:
    """
    The learning rate of one stage: linear warm-up over the first steps, then torch's scheduler every epoch.

    Epochs entirely within the warm-up do not count: a cosine schedule covers the remaining ones.

    Args:
        optimizer: The optimizer.
        options: See `ScheduleConfig`.
        lr: Initial learning rate.
        epochs: Number of epochs of the stage.
        warmup: Whether the stage begins with the warm-up.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        options: ScheduleConfig,
        lr: float,
        epochs: int,
        warmup: bool,
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = lr
        self.options = options
        self.main: Any = {
            "constant": lambda: None,
            "exponential": lambda: lr_scheduler.ExponentialLR(optimizer, options.factor),
            "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, epochs, options.min_lr),
            "plateau": lambda: lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=options.factor, patience=options.patience, min_lr=options.min_lr
            ),
        }[options.name]()
        self.steps = options.warmup_steps if warmup else 0
        self.rise = (
            lr_scheduler.LinearLR(optimizer, 1 / (self.steps + 1), total_iters=self.steps)
            if self.steps
            else None
        )
        self.done = 0

    def after_step(self) -> None:
        """Called after each step of the optimizer."""
        if self.rise is not None and self.done < self.steps:
            self.rise.step()
        self.done += 1

    def after_epoch(self, loss: float) -> None:
        """Called after each epoch with the validation loss."""
        if self.main is None:
            return
        if self.done < self.steps:
            if isinstance(self.main, lr_scheduler.CosineAnnealingLR):
                self.main.T_max -= 1
            return
        if isinstance(self.main, lr_scheduler.ReduceLROnPlateau):
            self.main.step(loss)
        else:
            self.main.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed stage needs besides the optimizer's own state."""
        parts = {"main": self.main, "rise": self.rise}
        return {"done": self.done} | {k: v.state_dict() for k, v in parts.items() if v is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.done = state["done"]
        for name, part in (("main", self.main), ("rise", self.rise)):
            if part is not None:
                part.load_state_dict(state[name])


class Objective(torch.nn.Module):
    """
    Model and loss as one module.

    DistributedDataParallel wraps this module and not the model, so exactly the parameters that the loss
    depends on take part in the exchange of gradients, whatever else the model returns.
    """

    def __init__(self, model: torch.nn.Module, kind: LossKind, delta: float) -> None:
        super().__init__()
        self.model, self.delta = model, delta
        self.kind: LossKind = kind
        self.unconverged: str | None = None

    def forward(
        self,
        batch: dict[str, Tensor],
        weights: Mapping[str, float],
        scf: str,
        n_systems: float,
        n_atoms: float,
    ) -> Tensor:
        """
        The loss of this process's share, divided by the sizes of the whole batch.

        A share with a state that does not converge is left out: its loss is 0, and ``unconverged`` says why.
        """
        try:
            out = self.model(batch, training=True, scf=scf, **outputs_for(weights))
        except ConvergenceError as error:
            self.unconverged = str(error)
            # zero, but still a function of every parameter, as the exchange of gradients requires
            return sum((0 * p.sum() for p in self.model.parameters() if p.requires_grad), torch.zeros(()))
        self.unconverged = None
        return loss(out, batch, weights, self.kind, self.delta, n_systems, n_atoms)


def outputs_for(weights: Mapping[str, float]) -> dict[str, bool]:
    """The model options that compute the outputs of these loss terms."""
    return {
        "compute_force": weights.get("forces", 0) > 0,
        "compute_stress": weights.get("stress", 0) > 0,
        "compute_potential": weights.get("potential", 0) > 0,
        "compute_stability": weights.get("scf_stability", 0) > 0,
    }


def wanted(batch: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> dict[str, bool]:
    """The model options for outputs that the batch has labels for, or that the loss counts."""
    labels = {
        name: 1.0 for name in ("forces", "stress", "potential") if bool((batch[f"{name}_weight"] > 0).any())
    }
    return outputs_for({**(weights or {}), **labels})


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Disable derivatives with respect to the weights: forces need only those of the positions."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def make_objective(model: torch.nn.Module, config: TrainConfig, world: int) -> torch.nn.Module:
    """Make an `Objective`; with several processes, gradients are averaged."""
    objective = Objective(model, config.loss_kind, config.huber_delta)
    if world == 1:
        return objective
    device = next(model.parameters()).device
    return torch.nn.parallel.DistributedDataParallel(
        objective,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=True,
    )
