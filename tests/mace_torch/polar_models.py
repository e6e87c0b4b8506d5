"""PolarMACE models with random weights, and batches for them."""

from functools import cache

import numpy as np
import torch


def polar_model(
    hidden_irreps: str = "16x0e + 16x1o",
    num_interactions: int = 2,
    elements: tuple[int, ...] = (1, 6, 8),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    edge_irreps: str | None = None,
    max_ell: int = 2,
    correlation: int = 2,
    r_max: float = 3.0,
    **field,
):
    """A small PolarMACE of the released family's blocks; ``field`` overrides its electrostatics."""
    import mace  # noqa: F401  (before e3nn, which it teaches to load its constants)
    from e3nn import o3
    from mace import modules
    from mace.modules.extensions import PolarMACE

    interaction = modules.interaction_classes["RealAgnosticResidualNonLinearInteractionBlock"]
    options = {
        "kspace_cutoff_factor": 1.5,
        "atomic_multipoles_max_l": 1,
        "atomic_multipoles_smearing_width": 1.5,
        "field_feature_max_l": 1,
        "field_feature_widths": [1.5, 3.0],
        "num_recursion_steps": 2,
        "field_si": False,
        "include_electrostatic_self_interaction": True,
        "add_local_electron_energy": True,
        "field_feature_norms": [20.0, 20.0, 0.5, 0.5],
        "field_norm_factor": 1.0,
        "fixedpoint_update_config": {
            "type": "AgnosticEmbeddedOneBodyVariableUpdate",
            "potential_embedding_cls": "AgnosticChargeBiasedLinearPotentialEmbedding",
            "nonlinearity_cls": "MLPNonLinearity",
        },
        "field_readout_config": {"type": "OneBodyMLPFieldReadout"},
        **field,
    }
    norms = options["field_feature_norms"]
    n_norms = len(options["field_feature_widths"]) * (options["field_feature_max_l"] + 1)
    options["field_feature_norms"] = (norms + norms)[:n_norms]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(seed)
    model = PolarMACE(
        r_max=r_max,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=max_ell,
        interaction_cls=interaction,
        interaction_cls_first=interaction,
        num_interactions=num_interactions,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps(hidden_irreps),
        edge_irreps=None if edge_irreps is None else o3.Irreps(edge_irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=30.0,
        atomic_numbers=list(elements),
        correlation=correlation,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        **options,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.1)
            # charges of the size that molecules have, so that float32 noise is not amplified
            if "lr_source_maps" in name or "readout.linear_2" in name:
                parameter.mul_(0.1)
    torch.set_default_dtype(before)
    return model


@cache
def _cached(options: tuple):
    return polar_model(**{k: list(v) if isinstance(v, tuple) and k != "elements" else v for k, v in options})


def shared_polar_model(**options):
    """`polar_model`, built once per set of options: for tests that do not change it."""
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return _cached(tuple(sorted(frozen.items())))


def batch_of(frames, model, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """MACE's batch dictionary for a list of ase.Atoms (info: charge, spin, external_field)."""
    from mace import data
    from mace.tools import AtomicNumberTable, torch_geometric

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    keys = data.KeySpecification(
        info_keys={
            "total_charge": "charge",
            "total_spin": "spin",
            "external_field": "external_field",
        },
        arrays_keys={},
    )
    table = AtomicNumberTable([int(z) for z in model.atomic_numbers])
    graphs = [
        data.AtomicData.from_config(
            data.config_from_atoms(atoms, key_specification=keys),
            z_table=table,
            cutoff=float(model.r_max),
        )
        for atoms in frames
    ]
    batch = next(iter(torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs))))
    torch.set_default_dtype(before)
    return batch.to_dict()


def random_frames(pbc: list[tuple[bool, bool, bool]], seed: int = 1, n_atoms: int = 9, box: float = 7.0):
    """
    Random frames of three elements, charged, spin-polarised, in a field.

    mace-torch replaces the open axes of a cell by 5 r_max times the largest coordinate, so a batch that
    mixes molecules with crystals sums over as many wave vectors as that huge box has: keep ``box`` small.
    """
    from ase import Atoms

    rng = np.random.default_rng(seed)
    frames = []
    for i, flags in enumerate(pbc):
        n = n_atoms + 2 * i
        cell = np.diag([box, box + 0.5, box + 2.0]) + 0.3 * rng.standard_normal((3, 3))
        positions: list[np.ndarray] = []
        while len(positions) < n:
            r = rng.random(3) @ cell
            if all(np.linalg.norm(r - other) > 0.9 for other in positions):
                positions.append(r)
        atoms = Atoms(numbers=rng.choice([1, 6, 8], n), positions=positions, cell=cell, pbc=flags)
        atoms.info["charge"] = float(i - 1)
        # what so many electrons can have
        atoms.info["spin"] = 1.0 + (int(atoms.numbers.sum()) - (i - 1)) % 2 + 2 * (i % 2)
        atoms.info["external_field"] = 0.05 * rng.standard_normal(3)
        frames.append(atoms)
    return frames
