"""The short-range network: an accelerated MACE of mace-torch."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from e3nn import o3
from mace import modules
from torch import Tensor

from ..distributed import Domain, all_reduce
from ..mace_torch import accelerate
from .basis import OPTION, adopt_basis
from .config import BackboneConfig


@dataclass
class BackboneOutput:
    """
    Output of the network for a batch.

    Attributes:
        energy: ``[n_systems]`` eV, including the atomic energies E0.
        interaction_energy: ``[n_systems]`` eV, without them.
        node_energy: ``[n_atoms]`` eV.
        features: ``[n_atoms, irreps]`` of each layer.
        raw: Everything the network returned.
    """

    energy: Tensor
    interaction_energy: Tensor
    node_energy: Tensor
    features: list[Tensor]
    raw: dict[str, Any]


class Backbone(torch.nn.Module):
    """
    Energy and features of a mace-torch model, run accelerated.

    Args:
        mace: A mace-torch ``MACE`` or ``ScaleShiftMACE``, trained or not; it is shared, not copied.

    Example:
        >>> import ase.build, torch
        >>> from scfmlip.mace_torch.batches import make_batch
        >>> from scfmlip.models import Backbone, BackboneConfig
        >>> config = BackboneConfig(hidden_irreps="4x0e", max_ell=1, correlation=1, num_interactions=1)
        >>> backbone = Backbone.build(config, elements=[1, 8], atomic_energies=[-13.6, -430.0])
        >>> batch = make_batch(backbone.mace, [ase.build.molecule("H2O")], torch.device("cpu"), torch.float32)
        >>> out = backbone(batch)
        >>> out.features[0].shape, round(float(out.energy - out.interaction_energy), 1)  # E0s, eV
        (torch.Size([3, 4]), -457.2)
    """

    def __init__(self, mace: torch.nn.Module) -> None:
        super().__init__()
        self.mace = accelerate(mace)
        layers: Any = mace.products
        found: list[Any] = [o3.Irreps(str(p.linear.irreps_out)) for p in layers]
        self.irreps: tuple[o3.Irreps, ...] = tuple(found)

    @classmethod
    def build(
        cls,
        config: BackboneConfig,
        elements: Sequence[int],
        atomic_energies: Sequence[Any],
        embedding_specs: dict[str, Any] | None = None,
    ) -> Backbone:
        """
        Build a network with random weights, in PyTorch's default dtype.

        Args:
            config: Options.
            elements: Atomic numbers.
            atomic_energies: eV of each element, or one row per head.
            embedding_specs: mace-torch's description of additional inputs.

        Raises:
            ValueError: for an interaction block that mace-torch does not have.
        """
        return cls(
            modules.ScaleShiftMACE(**mace_arguments(config, elements, atomic_energies, embedding_specs))
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load weights; the network takes the basis of its contraction from them."""
        adopt_basis(self.mace, state_dict, f"{prefix}mace.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(
        self, batch: dict[str, Tensor], domain: Domain | None = None, vectors: Tensor | None = None
    ) -> BackboneOutput:
        """
        Energy and features of a batch in mace-torch's layout.

        The output is not detached, so the caller can differentiate it.

        Args:
            batch: See `Model.forward`.
            domain: See `Model.forward`.
            vectors: ``[n_edges, 3]`` angstrom from senders to receivers; needed with a domain.
        """
        given = dict(batch)
        if not given["positions"].requires_grad:  # mace-torch sets it in place
            given["positions"] = given["positions"].detach()
        if domain is None:
            out = self.mace(given, training=True, compute_force=False)
        else:
            out = self._of_domain(given, domain, vectors)
        sizes = [irreps.dim for irreps in self.irreps]
        features = list(out["node_feats"].split(sizes, dim=1))
        interaction = out.get("interaction_energy")
        if interaction is None:  # plain MACE: E0s are its first contribution
            interaction = out["energy"] - out["contributions"][:, 0]
        elif "electron_energy" in out:  # MACE-POLAR's name for its short-range part
            field = batch.get("external_field")
            interaction = interaction + out["electron_energy"] + out["electrostatic_energy"]
            if field is not None:
                interaction = interaction + (field.view(-1, 3) * out["dipole"]).sum(1)
        return BackboneOutput(out["energy"], interaction, out["node_energy"], features, out)

    def _of_domain(self, given: dict[str, Any], domain: Domain, vectors: Tensor | None) -> dict[str, Tensor]:
        """Outputs of own atoms, and energies of the whole system; the halo takes the place of an engine's."""
        assert vectors is not None
        specs: dict[str, Any] = getattr(self.mace, "embedding_specs", None) or {}
        for name, spec in specs.items():
            if name not in given:
                raise ValueError(f"this network embeds {name}, which the batch lacks")
            if spec["per"] != "graph":
                given[name] = domain.halo.extend(given[name])
        given.update(
            node_attrs=domain.node_attrs,
            vectors=vectors,
            natoms=domain.halo.natoms,
            lammps_class=domain.halo,
        )
        with _embedded_at_ghosts(self.mace, domain):
            out = self.mace(given, training=True, compute_force=False, lammps_mliap=True)
        if "interaction_energy" in out and "electron_energy" not in out:
            # mace-torch counts ghosts as a second system
            both = torch.stack((out["energy"][:1], out["interaction_energy"][:1]))
            both = all_reduce(both, domain.communicator)
            out = {**out, "energy": both[0], "interaction_energy": both[1]}
        return out


@contextlib.contextmanager
def _embedded_at_ghosts(mace: torch.nn.Module, domain: Domain) -> Iterator[None]:
    """Inside, numbers of the one system are embedded at ghosts too, which mace-torch's forward forgets."""
    module = getattr(mace, "joint_embedding", None)
    if module is None:
        yield
        return

    def everywhere(_: torch.nn.Module, given: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        batch, features = given
        return batch.new_zeros(domain.halo.n_all), features

    handle = module.register_forward_pre_hook(everywhere)
    try:
        yield
    finally:
        handle.remove()


def mace_arguments(
    config: BackboneConfig,
    elements: Sequence[int],
    atomic_energies: Sequence[Any],
    embedding_specs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Keyword arguments of mace-torch's ``ScaleShiftMACE``; see `Backbone.build`.

    Raises:
        ValueError: for an interaction block that mace-torch does not have.
        ImportError: for a mace-torch before 0.3.16.
    """
    if "keep_last_layer_irreps" not in inspect.signature(modules.MACE.__init__).parameters:
        raise ImportError(
            "scfmlip.models needs mace-torch 0.3.16, whose last layers can keep their vectors; this is "
            f"{version('mace-torch')}: pip install 'mace-torch>=0.3.16'"
        )
    blocks = modules.interaction_classes
    for name in (config.interaction, config.interaction_first):
        if name not in blocks:
            raise ValueError(
                f"mace-torch has no interaction block {name!r}; it has {', '.join(sorted(blocks))}"
            )
    # set here, because mace-torch's default depends on what is installed
    options = {OPTION: False, **config.options}
    if options.get("edge_irreps") is not None:
        options["edge_irreps"] = o3.Irreps(options["edge_irreps"])
    n_heads = len(config.heads)
    energies = np.asarray(atomic_energies, dtype=float)
    energies = np.tile(energies, (n_heads, 1)) if n_heads > 1 and energies.ndim == 1 else energies
    scale, shift = config.per_head(config.scale), config.per_head(config.shift)
    return {
        "r_max": config.r_max,
        "num_bessel": config.num_bessel,
        "num_polynomial_cutoff": config.num_polynomial_cutoff,
        "max_ell": config.max_ell,
        "interaction_cls": blocks[config.interaction],
        "interaction_cls_first": blocks[config.interaction_first],
        "num_interactions": config.num_interactions,
        "num_elements": len(elements),
        "hidden_irreps": o3.Irreps(config.hidden_irreps),
        "MLP_irreps": o3.Irreps(config.MLP_irreps),
        "gate": torch.nn.functional.silu,
        "atomic_energies": energies,
        "avg_num_neighbors": config.avg_num_neighbors,
        "atomic_numbers": list(elements),
        "correlation": config.correlation,
        "radial_MLP": list(config.radial_MLP),
        "pair_repulsion": config.pair_repulsion,
        "distance_transform": config.distance_transform,
        "heads": list(config.heads),
        "embedding_specs": embedding_specs,
        "keep_last_layer_irreps": config.keep_last_layer_irreps,
        "atomic_inter_scale": scale if isinstance(config.scale, tuple) or n_heads > 1 else scale[0],
        "atomic_inter_shift": shift if isinstance(config.shift, tuple) or n_heads > 1 else shift[0],
        **options,
    }
